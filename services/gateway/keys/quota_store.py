"""Quotas in Redis, the same for all gateways: one sorted set a key, in which every score is a time.

`ziya:quota:<name>` holds the members `images` and `tokens`, whose scores are the times at which these buckets are full
again (rate.py), and one member a request being answered, whose score is the time at which its lease ends. A score that
has passed means nothing, so one ZREMRANGEBYSCORE forgets full buckets and the leases of a gateway that was killed
alike; and there is one key, so that a script works on a Redis Cluster, too. The clock is Redis's own: gateways' clocks
need not agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.gateway.admission.cost import Cost
from services.gateway.keys.key_entry import Limits
from ziya.redis_link import Command, RedisLink

PREFIX = "ziya:quota:"

# Takes units and a lease, all or nothing. In each bucket's case the reply has the milliseconds until it is full.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local lease, lasts, concurrent = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local busy, want, wait, reason, last = {}, {}, 0, '', 0
for i, name in ipairs({'images', 'tokens'}) do
  local units, limit = tonumber(ARGV[2 + i * 2]), tonumber(ARGV[3 + i * 2])
  busy[i] = (tonumber(redis.call('ZSCORE', KEYS[1], name) or now)) - now
  want[i] = busy[i]
  if limit > 0 then
    want[i] = busy[i] + units * 60000 / limit
    if units > 0 and want[i] - 60000 > wait then
      wait, reason = want[i] - 60000, name
    end
  end
  last = math.max(last, want[i])
end
if reason == '' and concurrent > 0 then
  local held = redis.call('ZCARD', KEYS[1])
  for _, name in ipairs({'images', 'tokens'}) do
    if redis.call('ZSCORE', KEYS[1], name) then held = held - 1 end
  end
  if held >= concurrent then reason = 'concurrent' end
end
if reason ~= '' then
  return {reason, math.ceil(wait), math.ceil(busy[1]), math.ceil(busy[2])}
end
for i, name in ipairs({'images', 'tokens'}) do
  if want[i] > 0 then redis.call('ZADD', KEYS[1], string.format('%.3f', now + want[i]), name) end
end
if concurrent > 0 then
  redis.call('ZADD', KEYS[1], string.format('%.3f', now + lasts), lease)
  last = math.max(last, lasts)
end
if last > 0 then redis.call('PEXPIRE', KEYS[1], math.ceil(last) + 1000) end
return {'', 0, math.ceil(want[1]), math.ceil(want[2])}
"""

# Ends a lease and corrects the buckets by what was taken too little, or too much.
_SETTLE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local last = 70000
redis.call('ZREM', KEYS[1], ARGV[1])
for i, name in ipairs({'images', 'tokens'}) do
  local units, limit = tonumber(ARGV[i * 2]), tonumber(ARGV[1 + i * 2])
  if limit > 0 and units ~= 0 then
    local full = math.max(tonumber(redis.call('ZSCORE', KEYS[1], name) or now), now) + units * 60000 / limit
    if full > now then
      redis.call('ZADD', KEYS[1], string.format('%.3f', full), name)
      last = math.max(last, math.ceil(full - now) + 1000)
    else
      redis.call('ZREM', KEYS[1], name)
    end
  end
end
if redis.call('PTTL', KEYS[1]) < last then redis.call('PEXPIRE', KEYS[1], last) end
return 1
"""

# Leases of requests that go on; one that Redis has forgotten is there again.
_RENEW = """
local time = redis.call('TIME')
local ends = string.format('%.3f', time[1] * 1000 + time[2] / 1000 + ARGV[1])
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], ends, ARGV[i]) end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) + 1000 then redis.call('PEXPIRE', KEYS[1], ARGV[1] + 1000) end
return 1
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`refused`: the limit that stood in the way, "" for none; `wait`: seconds until it would not.

    `images` and `tokens`: milliseconds until the buckets are full.
    """

    refused: str
    wait: float
    images: float
    tokens: float


class QuotaStore:
    """Raw quota commands. `lease_seconds`: for how long a lease that nobody renews counts."""

    def __init__(self, link: RedisLink, *, lease_seconds: float) -> None:
        self._link = link
        self._lease = max(1, int(lease_seconds * 1000))

    async def take(self, name: str, lease: str, cost: Cost, limits: Limits) -> Verdict:
        """One round trip, all or nothing. Raises BusUnavailable."""
        units = _units(cost, limits)
        reply = await self._link.call(
            "EVAL", _TAKE, 1, PREFIX + name, lease, self._lease, limits.concurrent or 0, *units
        )
        refused, wait, images, tokens = reply
        return Verdict(refused.decode(), wait / 1000, images, tokens)

    def settling(self, name: str, lease: str, change: Cost, limits: Limits) -> Command:
        """The command that ends a lease, and takes `change` more (less, where it is negative)."""
        return ["EVAL", _SETTLE, 1, PREFIX + name, lease, *_units(change, limits)]

    def renewing(self, name: str, leases: Sequence[str]) -> Command:
        """The command that lets leases go on."""
        return ["EVAL", _RENEW, 1, PREFIX + name, self._lease, *leases]

    async def send(self, commands: Sequence[Command]) -> None:
        """Several commands in one round trip. Raises BusUnavailable."""
        await self._link.pipeline(commands)


def _units(cost: Cost, limits: Limits) -> list[int]:
    return [cost.images, limits.images or 0, cost.tokens, limits.tokens or 0]
