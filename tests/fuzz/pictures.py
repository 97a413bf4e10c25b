"""Hostile image files and data: URLs, to what judges them in the gateway and to what decodes them in vision."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from PIL import Image

from services.gateway.images.image_source import decode_data_url
from tests.fuzz.check import Outcome, Target
from tests.fuzz.strategies import BORDERS, mutated
from ziya.errors import InvalidImage
from ziya.images import ImageLimits, decode, inspect

LIMITS = ImageLimits(max_bytes=1 << 20, max_pixels=1 << 20, max_side=4096)


def _file(kind: str, mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return bytes(exif.tobytes())


FILES = [
    _file("PNG"),
    _file("PNG", "P", transparency=1),
    _file("PNG", "L", exif=_exif()),
    _file("JPEG", progressive=True, exif=_exif(), comment=b"hello"),
    _file("JPEG", "CMYK"),
    _file("WEBP", exif=_exif()),
    _file("WEBP", "RGBA", lossless=True),
    _file("WEBP", save_all=True, append_images=[Image.new("RGB", (24, 20))]),
    _file("GIF", "P", comment=b"hello", transparency=1),
    _file("GIF", "P", save_all=True, append_images=[Image.new("P", (24, 20))]),
    _file("BMP"),
    _file("BMP", "P"),
]


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@st.composite
def _png(draw: DrawFn) -> bytes:
    """Chunks with right checksums, whatever they hold."""
    sizes = st.integers(0, 70) | st.sampled_from(BORDERS)
    head = struct.pack(">II", draw(sizes), draw(sizes)) + draw(st.binary(min_size=5, max_size=5))
    names = st.sampled_from([b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT"])
    packed = st.builds(lambda size: zlib.compress(bytes(size)), st.integers(0, 300_000))
    chunks = draw(st.lists(st.tuples(names, st.binary(max_size=40) | packed), max_size=5))
    more = draw(st.sampled_from([0, 0, 0, 20_000])) * _chunk(b"tEXt", b"")
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + more + b"".join(_chunk(*each) for each in chunks)


@st.composite
def _jpeg(draw: DrawFn) -> bytes:
    """Segments of a good file in any number, and scans that are empty."""
    good = draw(st.sampled_from([file for file in FILES if file.startswith(b"\xff\xd8")]))
    place = good.index(b"\xff\xda")
    segment = draw(st.sampled_from([b"\xff\xfe\0\2", b"\xff", b"\xff\xe1\0\10Exif\0\0", b"\xff\xda\0\2", b"\xff\x00"]))
    return good[:place] + segment * draw(st.sampled_from([1, 3, 1000, 20_000])) + draw(mutated(good[place:]))


@st.composite
def _bmp(draw: DrawFn) -> bytes:
    """Any header before any runs of pixels."""
    numbers = st.integers(-3, 200) | st.sampled_from(BORDERS)
    head = [draw(numbers) & 0xFFFFFFFF for _ in range(9)]
    size, planes, bits = (
        draw(st.sampled_from([12, 40, 56, 64, 108, 124])),
        1,
        draw(st.sampled_from([1, 4, 8, 16, 24, 32])),
    )
    info = struct.pack("<3I2H6I", size, *head[:2], planes, bits, draw(st.integers(0, 4)), *head[2:7])
    return (
        b"BM" + struct.pack("<3I", *head[6:9]) + info + draw(st.binary(max_size=2000)) * draw(st.sampled_from([1, 50]))
    )


_SIGNATURES = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x20\0\0\0WEBPVP8X", b"GIF89a", b"BM", b""]
IMAGES = st.one_of(
    st.sampled_from(FILES).flatmap(mutated),
    st.builds(bytes.__add__, st.sampled_from(_SIGNATURES), st.binary(max_size=600)),
    _png(),
    _jpeg(),
    _bmp(),
)


def _feed(data: bytes) -> Outcome:
    try:
        kind, width, height = inspect(data, LIMITS)
        pixels = decode(data, LIMITS)
    except InvalidImage:
        return Outcome.REFUSED
    assert kind
    assert pixels.dtype == np.uint8
    assert sorted(pixels.shape[:2]) == sorted((width, height))
    return Outcome.ANSWERED


def _feed_url(url: str) -> Outcome:
    try:
        data = decode_data_url(url, LIMITS.max_bytes)
    except InvalidImage:
        return Outcome.REFUSED
    assert len(data) <= LIMITS.max_bytes
    return Outcome.ANSWERED


_types = st.sampled_from(
    ["data:", "data:image/png;base64,", "data:;base64,", "data:text/html,", "data:image/png;base64"]
)
_bodies = st.text(max_size=40) | st.binary(max_size=60).map(lambda data: base64.b64encode(data).decode())
DATA_URLS = st.builds(str.__add__, _types, _bodies)

TARGET = Target("image file", IMAGES, _feed)
URL_TARGET = Target("data: URL", DATA_URLS, _feed_url)
