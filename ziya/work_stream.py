"""The queue of references for the Q-Former: one stream, one consumer group a service.

An entry is about 300 bytes: keys, never tensors. It is acknowledged after its result is stored and
announced, and deleted with the acknowledgement, so that the stream's length *is* the backlog (unread
and unfinished) and a full stream refuses work instead of trimming it unread. A consumer renews its
claim on what it holds while the work's time lasts; what a dead one held is claimed by a peer after
`claim_idle` seconds. Work may therefore run twice, and must be idempotent. Entries that cannot be
decoded, or that were delivered too often, go to a dead-letter stream.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ziya.errors import Overloaded, ZiyaError, to_line
from ziya.redis_link import Command, RedisLink
from ziya.telemetry import Metrics

WORK = "ziya:work:qformer"
READY = "ziya:ready"
DEAD = "ziya:dead:qformer"
MAX_DEAD = 1000
MAX_READY = 10_000

_PUBLISH = """
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
return redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
"""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Work:
    """Compute the tokens of these features. `deadline` is in unix seconds."""

    features_key: str
    tokens_key: str
    instruction: str
    deadline: float
    request_id: str
    traceparent: str = ""

    def fields(self) -> list[str]:
        """Names and values in turn, as XADD takes them."""
        return [text for name, value in asdict(self).items() for text in (name, str(value))]

    @classmethod
    def from_fields(cls, fields: Mapping[bytes, bytes]) -> Work:
        """Raises ValueError for fields that `fields` did not write."""
        texts = {name.decode(): value.decode() for name, value in fields.items()}
        try:
            deadline = float(texts.pop("deadline"))
            work = cls(deadline=deadline, **texts)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a reference to work: {error}") from error
        if not math.isfinite(deadline):
            raise ValueError("the deadline is not a time")
        return work


@dataclass(frozen=True, slots=True)
class Delivery:
    """Work handed to a consumer. `deliveries` above 1: claimed from a consumer that did not finish it."""

    id: str
    work: Work
    deliveries: int
    group: str = ""

    @property
    def published(self) -> float:
        """When it was queued, by Redis's clock in unix seconds: ids begin with its milliseconds."""
        return int(self.id.partition("-")[0]) / 1000


class WorkStream:
    """Publishing and acknowledging on `WORK`. Every method raises BusUnavailable when Redis cannot be used."""

    def __init__(self, link: RedisLink, *, max_backlog: int, metrics: Metrics) -> None:
        self._link, self._max_backlog = link, max_backlog
        self._dead = metrics.counter("bus_dead_letters", "Entries given up, by reason", ["reason"])
        self._withdrawn = metrics.counter("bus_withdrawn", "References taken back because nobody waited any more")
        self.claimed = metrics.counter("bus_claimed", "Entries taken over from a consumer that did not finish them")
        # What this process holds: entry id -> unix seconds until which its consumer renews the claim.
        self.held: dict[str, float] = {}

    async def publish(self, work: Work, *, before: Sequence[Command] = ()) -> str:
        """Queues work after the commands `before`, in one round trip; its id. Raises Overloaded with a full backlog."""
        add: Command = ["EVAL", _PUBLISH, 1, WORK, self._max_backlog, *work.fields()]
        if entry := (await self._link.pipeline([*before, add]))[-1]:
            return bytes(entry).decode()
        raise Overloaded(f"{self._max_backlog} images are waiting for the Q-Former already")

    async def withdraw(self, entries: Sequence[str]) -> None:
        """Takes work off the stream that nobody wants any more, read or not."""
        self._withdrawn.inc(await self._link.call("XDEL", WORK, *entries))

    async def wanted(self, deliveries: Sequence[Delivery]) -> list[bool]:
        """Which deliveries have not been withdrawn since they were read."""
        return list(map(bool, await self._link.pipeline([["XRANGE", WORK, d.id, d.id] for d in deliveries])))

    async def backlog(self) -> int:
        """Entries that nobody has finished, read or not."""
        return int(await self._link.call("XLEN", WORK))

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Finishes deliveries: they leave the group and the stream."""
        await self._link.pipeline(self._acknowledgement(deliveries))
        self.release(deliveries)

    @staticmethod
    def _acknowledgement(deliveries: Sequence[Delivery]) -> list[Command]:
        commands: list[Command] = [
            ["XACK", WORK, group, *(d.id for d in deliveries if d.group == group)]
            for group in sorted({delivery.group for delivery in deliveries})
        ]
        return [*commands, ["XDEL", WORK, *(d.id for d in deliveries)]] if deliveries else []

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """Forgets what this process holds, so that its consumer no longer renews the claim."""
        for delivery in deliveries:
            self.held.pop(delivery.id, None)

    async def finish(
        self, outcomes: Sequence[tuple[Delivery, bytes | ZiyaError | None]], ttl_milliseconds: int
    ) -> None:
        """Stores tokens, announces them or the error, and acknowledges: all of it or, in a full Redis, nothing.

        None stands for withdrawn work, of which nobody is told.
        """
        commands: list[Command] = []
        for delivery, result in outcomes:
            key = delivery.work.tokens_key
            if isinstance(result, bytes):
                commands += [["SET", key, result, "PX", ttl_milliseconds], announcement(key, None)]
            elif result is not None:
                commands.append(announcement(key, result))
        deliveries = [delivery for delivery, _ in outcomes]
        await self._link.pipeline(commands + self._acknowledgement(deliveries), atomic=True)
        self.release(deliveries)

    async def bury(self, group: str, entry: str, fields: Mapping[bytes, bytes], reason: str, detail: str) -> None:
        """Moves an entry that cannot be worked on to the dead-letter stream, for a person to look at."""
        self._dead.labels(reason).inc()
        log.error("an entry was given up", extra={"entry": entry, "reason": reason, "detail": detail})
        kept = [text for pair in fields.items() for text in pair]
        letter: Command = ["XADD", DEAD, "MAXLEN", "~", MAX_DEAD, "*", "entry", entry, "reason", reason, *kept]
        await self._link.pipeline([letter, ["XACK", WORK, group, entry], ["XDEL", WORK, entry]])
        self.held.pop(entry, None)


def announcement(key: str, error: ZiyaError | None) -> Command:
    """The command that tells every waiting process that `key` is there, or why it will not be."""
    text = to_line(error) if error is not None else ""
    return ["XADD", READY, "MAXLEN", "~", MAX_READY, "*", "key", key, "error", text]


def backoff(failures: int) -> float:
    """Seconds to wait before trying a lost Redis again: up to half a second, with jitter."""
    return min(0.5, 0.01 * float(1 << min(failures, 10))) * random.uniform(0.5, 1.0)
