"""Hostile tensor envelopes: any bytes, good ones with changes, and forged headers with a right checksum."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.fuzz.check import Outcome, Target
from tests.fuzz.strategies import mutated
from ziya.errors import InvalidEnvelope
from ziya.wire import HEADER, MAGIC, Stage, pack, unpack

ORIGIN = "ab" * 32
SHAPE = (4, 8)
GOOD = pack(np.ones(SHAPE, np.float16), stage=Stage.TOKENS, fingerprint=ORIGIN, deadline=1e9, traceparent="00-a-b-01")


def _forged(fields: tuple[Any, ...], shape: list[int], payload: bytes) -> bytes:
    version, stage, dtype, rank, size, created, deadline, origin, trace = fields
    body = struct.pack(f"<{len(shape)}I", *shape) + ORIGIN.encode()
    body += bytes(-(HEADER.size + len(body)) % 16)
    head = HEADER.pack(MAGIC, version, stage, dtype, rank, 0, size, created, deadline, origin, trace)
    data = bytearray(head + body + payload)
    struct.pack_into("<I", data, 8, zlib.crc32(data[12:], zlib.crc32(data[:8])))
    return bytes(data)


_byte, _short = st.integers(0, 255), st.integers(0, 65535)
_fields = st.tuples(
    st.just(1) | _byte,
    st.just(2) | _byte,
    st.sampled_from([1, 2]) | _byte,
    st.just(2) | _byte,
    st.just(64) | st.integers(0, (1 << 64) - 1),
    st.floats(),
    st.floats(),
    st.just(64) | _short,
    st.just(0) | _short,
)
_shapes = st.just(list(SHAPE)) | st.lists(st.integers(0, (1 << 32) - 1), max_size=4)
ENVELOPES = (
    st.binary(max_size=300) | mutated(GOOD) | st.builds(_forged, _fields, _shapes, st.just(bytes(64)) | st.binary())
)


def _feed(data: bytes) -> Outcome:
    try:
        array = unpack(data, stage=Stage.TOKENS, fingerprint=ORIGIN, shape=SHAPE).array
    except InvalidEnvelope:
        return Outcome.REFUSED
    assert array.shape == SHAPE
    assert np.isfinite(array).all()
    return Outcome.ANSWERED


TARGET = Target("tensor envelope", ENVELOPES, _feed)
