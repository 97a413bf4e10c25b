"""Files that would keep a processor or a memory busy for minutes: refused by their blocks, or freed of them."""

from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ziya.errors import InvalidImage
from ziya.image_parts import MAX_BLOCKS, MAX_SCANS, orientation_of, parts_of
from ziya.images import ImageLimits, decode, inspect

LIMITS = ImageLimits()


def encode(kind: str, mode: str = "RGB", size: int = 16, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def behind_header(png: bytes, more: bytes) -> bytes:
    place = png.index(b"IDAT") - 4
    return png[:place] + more + png[place:]


def progressive(scans: int) -> bytes:
    """A JPEG whose last scan comes again and again."""
    data = encode("JPEG", "L", 64, progressive=True)
    places = [found.start() for found in re.finditer(b"\xff\xda", data)]
    end = data.rindex(b"\xff\xd9")
    return data[:end] + data[places[-1] : end] * (scans - len(places)) + data[end:]


def exif(orientation: int, order: str = "<", entries: int = 1) -> bytes:
    """A TIFF structure whose last of `entries` is the orientation."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, entries)
    others = b"".join(struct.pack(f"{order}HHII", 0x9000 + n, 7, 4096, 8) for n in range(entries - 1))
    return head + others + struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0) + bytes(8192)


def test_a_jpeg_of_many_scans_is_refused() -> None:
    assert decode(progressive(MAX_SCANS), LIMITS).shape == (64, 64, 3)
    for call in (inspect, decode):
        with pytest.raises(InvalidImage, match="scans"):
            call(progressive(MAX_SCANS + 1), LIMITS)


def test_a_bmp_in_runs_is_refused() -> None:
    head = struct.pack("<IiiHHIIiiII", 40, 16_000, 3_000, 1, 8, 1, 12_000, 0, 0, 256, 0)
    data = b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + head + bytes(1024) + b"\1\1\0\0" * 3_000
    for call in (inspect, decode):
        with pytest.raises(InvalidImage, match="runs"):
            call(data, LIMITS)


@pytest.mark.parametrize(
    "data",
    [
        behind_header(encode("PNG"), chunk(b"teSt") * MAX_BLOCKS),
        encode("PNG")[:-12] + chunk(b"teSt") * MAX_BLOCKS + chunk(b"IEND"),
        encode("JPEG")[:2] + b"\xff\xfe\0\2" * MAX_BLOCKS + encode("JPEG")[2:],
        encode("JPEG")[:2] + b"\xff\0" * MAX_BLOCKS + encode("JPEG")[2:],
        b"GIF89a\x10\0\x10\0\0\0\0" + b"!\xfe\1x\0" * MAX_BLOCKS,
        b"GIF89a\x10\0\x10\0\0\0\0" + b"!\xfe" + b"\1x" * MAX_BLOCKS + b"\0",
        encode("WEBP") + b"JUNK\0\0\0\0" * MAX_BLOCKS,
    ],
    ids=["PNG before", "PNG behind", "JPEG comments", "JPEG junk", "GIF comments", "GIF comment", "WebP"],
)
def test_a_file_of_very_many_blocks_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage, match="blocks"):
        inspect(data, LIMITS)


def test_what_makes_no_pixels_does_not_reach_the_decoder() -> None:
    plain = encode("JPEG")
    fat = b"\xff\xd8" + b"\xff" * 1_000_000 + b"\xff\xe1\xff\xff" + bytes(65533) + b"\xff\xed\0\4ab" + plain[2:]
    assert len(parts_of("JPEG", fat).data) <= len(plain)
    assert np.array_equal(decode(fat, LIMITS), decode(plain, LIMITS))
    plain = encode("PNG")
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(10_000_000)))
    fat = behind_header(plain, profile + chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(10_000_000))))
    assert parts_of("PNG", fat).data == plain
    assert np.array_equal(decode(fat, LIMITS), decode(plain, LIMITS))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_of_many_large_tags_is_not_read_but_for_the_orientation(kind: str) -> None:
    """Pillow reads every tag, at the opening of a JPEG even; it would warn of each of these, which is an error here."""
    before = b"Exif\0\0" if kind == "JPEG" else b""
    pixels = decode(encode(kind, exif=before + exif(6, entries=2000)), LIMITS)
    upright = decode(encode(kind), LIMITS)
    assert np.array_equal(pixels, np.rot90(upright, -1))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [1, 3, 8])
def test_orientation_is_read(order: str, orientation: int) -> None:
    assert orientation_of(exif(orientation, order, entries=3)) == orientation
    assert orientation_of(b"Exif\0\0" + exif(orientation, order)) == orientation


@pytest.mark.parametrize(
    "data",
    [b"", b"II*\0", b"II*\0\xff\xff\xff\xff\1\0", b"XX*\0" + bytes(20), exif(9), exif(0), exif(6)[:15], b"Exif\0\0"],
)
def test_broken_exif_turns_nothing(data: bytes) -> None:
    assert orientation_of(data) == 1
