"""What strangers, or a half-finished rollout, may leave on the bus: broken envelopes and broken references."""

from __future__ import annotations

import struct

import redis

from ziya.bus import WORK
from ziya.keys import FEATURES_PREFIX, TOKENS_PREFIX

OVERSIZED = 24 << 20


def spoil(client: redis.Redis) -> int:
    """Replaces every tensor on the bus by something else, each in one of six ways; how many there were."""
    keys = [key for prefix in (FEATURES_PREFIX, TOKENS_PREFIX) for key in client.scan_iter(f"{prefix}*", count=1000)]
    oversized = 0
    for number, key in enumerate(keys):
        value = (client.get(key) if client.type(key) == b"string" else b"") or b""
        kind = number % 6
        if kind == 5:
            client.delete(key)
            client.rpush(key, "not", "bytes")
            client.expire(key, 60)
            continue
        if kind == 4 and oversized < 4:  # a few are enough: each is 24 MiB
            oversized += 1
            changed = value + bytes(OVERSIZED)
        elif kind == 3:
            changed = b"pickle? \x80\x04N."
        elif kind == 2:
            changed = value[:4] + bytes([99]) + value[5:]  # a version of the future
        elif kind == 1:
            changed = value[:20] + struct.pack("<Q", 1 << 60) + value[28:]  # a payload of an exbibyte
        else:
            changed = value[:-1] + bytes([value[-1] ^ 1]) if value else b"x"
        client.set(key, changed, ex=60)
    for fields in ({"deadline": "nan"}, {"features_key": b"\xff\xfe"}, {"pickle": b"\x80\x04N."}):
        client.xadd(WORK, fields)
    return len(keys)
