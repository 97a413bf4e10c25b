"""The envelope: there and back, and whatever arrives instead of one is refused as InvalidEnvelope."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ziya.errors import InvalidEnvelope
from ziya.wire import HEADER, MAGIC, Stage, pack, unpack

ORIGIN = "ab" * 32
ANY2 = (None, None)


def tokens(shape: tuple[int, ...] = (4, 8), dtype: Any = np.float16) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def good(**changes: Any) -> bytes:
    return pack(tokens(), **({"stage": Stage.TOKENS, "fingerprint": ORIGIN} | changes))


def read(data: bytes, **changes: Any) -> Any:
    return unpack(data, **({"stage": Stage.TOKENS, "fingerprint": ORIGIN, "shape": ANY2} | changes))


def forged(head: dict[str, Any], payload: bytes = b"\0" * 64, shape: tuple[int, ...] = (4, 8)) -> bytes:
    """An envelope with chosen header fields and a checksum that is right."""
    fields = {
        "magic": MAGIC,
        "version": 1,
        "stage": 2,
        "dtype": 1,
        "rank": len(shape),
        "checksum": 0,
        "size": len(payload),
        "created": 1.0,
        "deadline": 2.0,
        "fingerprint": len(ORIGIN),
        "trace": 0,
    } | head
    body = struct.pack(f"<{len(shape)}I", *shape) + ORIGIN.encode()
    body += bytes(-(HEADER.size + len(body)) % 16)
    data = bytearray(HEADER.pack(*fields.values()) + body + payload)
    struct.pack_into("<I", data, 8, zlib.crc32(data[12:], zlib.crc32(data[:8])))
    return bytes(data)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(1,), (7,), (4, 8), (3, 5, 7), (2, 3, 4, 5)])
@pytest.mark.parametrize("stage", list(Stage))
def test_round_trip(dtype: Any, shape: tuple[int, ...], stage: Stage) -> None:
    array, before = tokens(shape, dtype), time.time()
    data = pack(array, stage=stage, fingerprint=ORIGIN, deadline=before + 5, traceparent="00-ab-cd-01")
    back = unpack(data, stage=stage, fingerprint=ORIGIN, shape=shape)
    np.testing.assert_array_equal(back.array, array)
    assert back.array.dtype == array.dtype
    assert (back.stage, back.fingerprint, back.traceparent) == (stage, ORIGIN, "00-ab-cd-01")
    assert back.deadline == before + 5
    assert before <= back.created <= time.time()


def test_without_a_deadline() -> None:
    assert read(good()).deadline is None


def test_the_array_is_a_view_of_the_bytes() -> None:
    data = good()
    array = read(data).array
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))
    assert not array.flags.writeable
    assert array.ctypes.data % 16 == 0


@pytest.mark.parametrize(
    "array",
    [tokens((8, 4)).T, tokens((8, 8))[::2], tokens((4, 8)).astype(">f2"), tokens((4, 8), np.dtype(">f4"))],
    ids=["transposed", "strided", "big-endian", "big-endian float32"],
)
def test_any_memory_layout_can_be_sent(array: np.ndarray) -> None:
    data = pack(array, stage=Stage.TOKENS, fingerprint=ORIGIN)
    np.testing.assert_array_equal(read(data).array, array)


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 2), np.float64), np.zeros((2, 2), np.int32), np.zeros((0, 2), np.float16), np.float16(1.0)[()]],
    ids=["float64", "int32", "empty", "scalar"],
)
def test_other_arrays_cannot_be_sent(array: Any) -> None:
    with pytest.raises(ValueError, match="cannot send"):
        pack(np.asarray(array), stage=Stage.TOKENS, fingerprint=ORIGIN)


def test_five_dimensions_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="rank 1 to 4"):
        pack(tokens((1, 1, 1, 1, 1)), stage=Stage.TOKENS, fingerprint=ORIGIN)


def test_a_forged_but_right_envelope_is_read() -> None:
    assert read(forged({})).array.shape == (4, 8)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: b"", "truncated"),
        (lambda: good()[: HEADER.size - 1], "truncated"),
        (lambda: good()[:-1], "length"),
        (lambda: good() + b"\0", "length"),
        (lambda: forged({"magic": b"PICK"}), "magic"),
        (lambda: forged({"version": 2}), "version 2"),
        (lambda: forged({"stage": 9}), "unknown stage"),
        (lambda: forged({"stage": 1}), "features, not tokens"),
        (lambda: forged({"dtype": 3}), "dtype"),
        (lambda: forged({"rank": 255}), "rank 255"),
        (lambda: forged({}, shape=(32,)), "rank 1"),
        (lambda: forged({"size": 1 << 62}), "length"),
        (lambda: forged({"fingerprint": 65535, "trace": 65535}), "length"),
        (lambda: forged({}, shape=(4, 9)), "fit its payload"),
        (lambda: forged({}, shape=(1 << 31, 1 << 31)), "fit its payload"),
        (lambda: forged({}, payload=b"", shape=(0, 8)), "fit its payload"),
        (lambda: forged({}, payload=b"\0\x7c" * 32), "not finite"),
        (lambda: forged({}, payload=b"\xff\xff" * 32), "not finite"),
        (lambda: forged({"dtype": 2}, payload=b"\0\0\xc0\x7f" * 32), "not finite"),
        (lambda: forged({"trace": 1, "fingerprint": 63}), "other weights"),
    ],
)
def test_what_is_wrong_is_named(make: Callable[[], bytes], complaint: str) -> None:
    with pytest.raises(InvalidEnvelope, match=complaint):
        read(make())


def test_a_foreign_producer_is_refused() -> None:
    with pytest.raises(InvalidEnvelope, match="other weights"):
        read(good(fingerprint="cd" * 32))


@pytest.mark.parametrize("shape", [(5, 8), (4, 9), (8, 4), (5, None)])
def test_another_shape_is_refused(shape: tuple[int | None, ...]) -> None:
    with pytest.raises(InvalidEnvelope, match="shape"):
        read(good(), shape=shape)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_one_number_that_is_not_finite_is_enough(value: float, dtype: Any) -> None:
    array = tokens((4, 8), dtype)
    array[3, 7] = value
    with pytest.raises(InvalidEnvelope, match="not finite"):
        read(pack(array, stage=Stage.TOKENS, fingerprint=ORIGIN))


def test_the_largest_numbers_are_finite() -> None:
    array = np.full((4, 8), -65504, np.float16)
    np.testing.assert_array_equal(read(pack(array, stage=Stage.TOKENS, fingerprint=ORIGIN)).array, array)


def test_more_than_the_limit_is_refused() -> None:
    data = good()
    assert read(data, max_bytes=len(data)).array.size == 32
    with pytest.raises(InvalidEnvelope, match="larger than"):
        read(data, max_bytes=len(data) - 1)


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_random_bytes(data: bytes) -> None:
    with pytest.raises(InvalidEnvelope):
        read(data)


@given(st.integers(0, len(good(traceparent="00-ab-cd-01")) * 8 - 1))
@settings(max_examples=400, deadline=None)
def test_any_flipped_bit_is_found(bit: int) -> None:
    data = bytearray(good(traceparent="00-ab-cd-01"))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidEnvelope):
        read(bytes(data))


@given(st.integers(0, len(good()) - 1), st.binary(max_size=40))
@settings(max_examples=200, deadline=None)
def test_truncated_and_continued_with_anything(length: int, tail: bytes) -> None:
    data = good()
    if data[:length] + tail == data:
        return
    with pytest.raises(InvalidEnvelope):
        read(data[:length] + tail)


@given(
    st.tuples(st.integers(0, 255), st.integers(0, 4), st.integers(0, 4), st.integers(0, 5)),
    st.integers(0, 2**64 - 1) | st.just(64),
    st.tuples(st.integers(0, 65535) | st.just(64), st.integers(0, 65535) | st.just(0)),
    st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 4, 8]), min_size=1, max_size=4),
    st.binary(min_size=0, max_size=80),
)
@settings(max_examples=400, deadline=None)
def test_hostile_headers_with_a_right_checksum(
    codes: tuple[int, int, int, int], size: int, sizes: tuple[int, int], shape: list[int], payload: bytes
) -> None:
    version, stage, dtype, rank = codes
    head = {"version": version, "stage": stage, "dtype": dtype, "rank": rank, "size": size}
    data = forged(head | {"fingerprint": sizes[0], "trace": sizes[1]}, payload, tuple(shape))
    try:
        array = read(data).array
    except InvalidEnvelope:
        return
    assert np.isfinite(array).all()
    assert array.nbytes <= len(data)


@given(arrays.arrays(np.float16, arrays.array_shapes(min_dims=2, max_dims=2), elements=st.floats(-6e4, 6e4, width=16)))
@settings(max_examples=50, deadline=None)
def test_any_finite_array_comes_back(array: np.ndarray) -> None:
    np.testing.assert_array_equal(read(pack(array, stage=Stage.TOKENS, fingerprint=ORIGIN)).array, array)
