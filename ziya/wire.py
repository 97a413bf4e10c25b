"""The tensor envelope: the only array on any wire, in Redis values and in protobuf messages alike.

    fixed header (48 bytes)   magic, version, stage, dtype, rank, checksum, payload size, created, deadline, text sizes
    shape                     rank x uint32
    texts                     fingerprint, trace context (ASCII)
    zeros                     up to a multiple of 16
    payload                   raw little-endian numbers in C order

Nothing here can run code, unlike pickle. `unpack` checks every field in the order of the header before
anything is allocated, and allocates nothing after: the array is a view of the bytes that arrived.
"""

from __future__ import annotations

import math
import struct
import time
import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from ziya.errors import InvalidEnvelope

MAGIC = b"ZIYA"
VERSION = 1
MAX_RANK = 4
ALIGNMENT = 16
# magic, version, stage, dtype, rank, checksum, payload bytes, created, deadline, fingerprint and trace text bytes
HEADER = struct.Struct("<4sBBBBIQddHH8x")
_AFTER_CHECKSUM = 12
DTYPES: dict[int, np.dtype[np.floating[Any]]] = {1: np.dtype("<f2"), 2: np.dtype("<f4")}


class Stage(StrEnum):
    """What the numbers are."""

    FEATURES = "features"
    TOKENS = "tokens"
    PROJECTED = "projected"


STAGES: dict[int, Stage] = {1: Stage.FEATURES, 2: Stage.TOKENS, 3: Stage.PROJECTED}
_STAGE_CODES = {stage: code for code, stage in STAGES.items()}
_DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Envelope:
    """A checked array (read-only view) with its origin. Times are unix seconds; no deadline is None."""

    array: npt.NDArray[np.floating[Any]]
    stage: Stage
    fingerprint: str
    created: float
    deadline: float | None
    traceparent: str


def pack(
    array: npt.NDArray[np.floating[Any]],
    *,
    stage: Stage,
    fingerprint: str,
    deadline: float | None = None,
    traceparent: str = "",
) -> bytes:
    """The envelope of a float16 or float32 array of rank 1 to 4. Raises ValueError for any other array."""
    code = _DTYPE_CODES.get(array.dtype.newbyteorder("<"))
    if code is None or not 1 <= array.ndim <= MAX_RANK or array.size == 0:
        raise ValueError(f"cannot send an array of {array.dtype} {array.shape}: float16 or float32, rank 1 to 4 only")
    payload = np.ascontiguousarray(array, DTYPES[code]).data.cast("B")
    texts = (fingerprint.encode("ascii"), traceparent.encode("ascii"))
    body = struct.pack(f"<{array.ndim}I", *array.shape) + b"".join(texts)
    body += bytes(-(HEADER.size + len(body)) % ALIGNMENT)
    end = math.nan if deadline is None else deadline
    sizes = (len(payload), time.time(), end, len(texts[0]), len(texts[1]))
    head = bytearray(HEADER.pack(MAGIC, VERSION, _STAGE_CODES[stage], code, array.ndim, 0, *sizes))
    struct.pack_into("<I", head, _AFTER_CHECKSUM - 4, _checksum(bytes(head), body, payload))
    return b"".join((head, body, payload))


def unpack(
    data: bytes, *, stage: Stage, fingerprint: str, shape: tuple[int | None, ...], max_bytes: int = 16 << 20
) -> Envelope:
    """The envelope in `data`, which must be of this stage, producer and shape (None: any length).

    Raises InvalidEnvelope, and nothing else, whatever the bytes are.
    """
    _require(len(data) >= HEADER.size, "is truncated")
    _require(len(data) <= max_bytes, f"is larger than {max_bytes} bytes")
    magic, version, stage_code, dtype_code, rank, checksum, size, created, end, *text_sizes = HEADER.unpack_from(data)
    _require(magic == MAGIC, "does not begin with the magic number")
    _require(version == VERSION, f"has version {version}; this program reads version {VERSION}")
    _require(STAGES.get(stage_code) is stage, f"holds {STAGES.get(stage_code, 'an unknown stage')}, not {stage}")
    _require(dtype_code in DTYPES, "has an unknown dtype")
    _require(rank == len(shape), f"has rank {rank}, not {len(shape)}")
    start = HEADER.size + 4 * rank + sum(text_sizes)
    start += -start % ALIGNMENT
    _require(start + size == len(data), "has a length that its header does not give")
    extents = struct.unpack_from(f"<{rank}I", data, HEADER.size)
    fits = all(want in (None, got) for got, want in zip(extents, shape, strict=True))
    _require(fits, f"has shape {list(extents)}, not {['any' if n is None else n for n in shape]}")
    dtype = DTYPES[dtype_code]
    count = math.prod(extents)
    _require(0 < count * dtype.itemsize == size, "has a shape that does not fit its payload")
    view = memoryview(data)
    _require(checksum == _checksum(data[: HEADER.size], view[HEADER.size : start], view[start:]), "fails its checksum")
    origin, trace = _texts(data, HEADER.size + 4 * rank, text_sizes)
    _require(origin == fingerprint, f"comes from other weights ({origin[:12]}…, not {fingerprint[:12]}…)")
    array = np.frombuffer(data, dtype, count, start).reshape(extents)
    _require(_finite(array), "holds numbers that are not finite")
    return Envelope(array, stage, origin, created, None if math.isnan(end) else end, trace)


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise InvalidEnvelope(f"the tensor envelope {complaint}")


def _checksum(head: bytes, body: bytes | memoryview, payload: memoryview) -> int:
    """CRC-32 of everything but the checksum field itself."""
    return zlib.crc32(payload, zlib.crc32(body, zlib.crc32(head[_AFTER_CHECKSUM:], zlib.crc32(head[:8]))))


def _texts(data: bytes, start: int, sizes: list[int]) -> tuple[str, str]:
    middle, end = start + sizes[0], start + sum(sizes)
    raw = data[start:end]
    _require(raw.isascii(), "has texts that are not ASCII")
    return raw[: middle - start].decode(), raw[middle - start :].decode()


def _finite(array: npt.NDArray[np.floating[Any]]) -> bool:
    if array.dtype.itemsize == 2:
        # numpy has no fast float16 path: an exponent of all ones is an infinity or a NaN.
        return bool((array.view(np.uint16) & 0x7C00).max() != 0x7C00)
    return bool(np.isfinite(array).all())
