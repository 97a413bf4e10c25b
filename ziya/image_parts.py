"""Of an image file only what makes its pixels, and that only so many times.

Pillow walks a file's blocks in Python and hands every scan to libjpeg: a few kilobytes of empty scans, of runs that
end at once or of empty blocks would keep a processor busy for minutes. So the blocks are counted here first, with
few steps a block, and those that do not change pixels (comments, profiles, previews, metadata) are left out.

Sources: PNG (W3C, 2025) 5, JPEG (ITU-T T.81) B.1 and B.2, GIF89a 17 to 26, WebP (RFC 9649) 2.3 to 2.7, Exif 2.32 4.6.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from ziya.errors import InvalidImage

# Far above what cameras and programs write: a phone's JPEG has some 200 segments, a 20 MiB PNG some 2,600 chunks.
MAX_BLOCKS = 16_384
MAX_SCANS = 100
_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_SCAN, _JPEG_END, _JPEG_EXIF = 0xDA, 0xD9, 0xE1
# Tables, frames and restarts; JFIF and Adobe say how to read the colours.
_JPEG_PIXELS = frozenset({*range(0xC0, 0xD0), 0xDB, 0xDC, 0xDD, 0xE0, 0xEE}) - {0xC8}
_NOT_FILL = re.compile(rb"[^\xff]")
_RUN_LENGTHS = (1, 2)
_ORIENTATION, _SHORT = 0x0112, 3


@dataclass(frozen=True, slots=True)
class Parts:
    """A file of the same pixels, and the orientation (1 to 8) that its Exif data ask for."""

    data: bytes
    orientation: int = 1


def parts_of(kind: str, data: bytes) -> Parts:
    """What is to be decoded. Raises InvalidImage for too much; ValueError, LookupError or struct.error for damage."""
    match kind:
        case "PNG":
            return _png(data)
        case "JPEG":
            return _jpeg(data)
        case "GIF":
            return Parts(_gif(data))
        case "WEBP":
            return Parts(data, orientation_of(_webp_exif(data)))
        case _:
            return Parts(_bmp(data))


def orientation_of(exif: bytes) -> int:
    """The orientation in Exif data (a TIFF structure, with or without `Exif` before it); 1 where there is none."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 10:
        return 1
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    if start + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    for place in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, number, value = struct.unpack_from(f"{order}HHIH", tiff, place)
        if (tag, kind, number) == (_ORIENTATION, _SHORT, 1):
            return value if 1 <= value <= 8 else 1
    return 1


class _Count:
    """Blocks seen so far."""

    def __init__(self) -> None:
        self._left = MAX_BLOCKS

    def one(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise InvalidImage(f"the image has more than {MAX_BLOCKS} blocks of data; save it anew")


def _png(data: bytes) -> Parts:
    kept, exif, at, count = [data[:8]], b"", 8, _Count()
    while at + 12 <= len(data):
        count.one()
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if name in _PNG_PIXELS:
            kept.append(data[at:end])
        elif name == b"eXIf":
            exif = data[at + 8 : end - 4]
        if name == b"IEND":
            break
        at = end
    return Parts(b"".join(kept), orientation_of(exif))


def _jpeg(data: bytes) -> Parts:
    kept, exif, at, count = [data[:2]], b"", 2, _Count()
    while True:
        count.one()
        # Between segments there may be junk, and before a marker any number of fill bytes.
        at = data.index(b"\xff", at)
        found = _NOT_FILL.search(data, at)
        if found is None:
            raise ValueError("no scan")
        marker, at = data[found.start()], found.end()
        if marker == 0 or marker in _JPEG_ALONE:
            continue
        if marker == _JPEG_END:
            raise ValueError("no scan")
        if marker == _JPEG_SCAN:
            break
        (length,) = struct.unpack_from(">H", data, at)
        segment = data[at + 2 : at + max(length, 2)]
        if marker in _JPEG_PIXELS:
            kept.append(b"\xff" + data[at - 1 : at + length])
        elif marker == _JPEG_EXIF and not exif and segment.startswith(b"Exif\0\0"):
            exif = segment
        at += max(length, 2)
    if data.count(b"\xff\xda", at - 2) > MAX_SCANS:
        raise InvalidImage(f"the JPEG image has more than {MAX_SCANS} scans; save it anew")
    kept.append(data[at - 2 :])
    return Parts(b"".join(kept), orientation_of(exif))


def _gif(data: bytes) -> bytes:
    """Up to the first frame only the block that says what is transparent; the rest as it is."""
    flags, count = data[10], _Count()
    at = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    kept = [data[:at]]
    while data[at] == 0x21:
        begin, label = at, data[at + 1]
        at += 2
        while size := data[at]:
            count.one()
            at += 1 + size
        at += 1
        count.one()
        if label == 0xF9:
            kept.append(data[begin:at])
    if data[at] != 0x2C:
        raise ValueError("no frame")
    return b"".join((*kept, data[at:]))


def _webp_exif(data: bytes) -> bytes:
    at, count = 12, _Count()
    while at + 8 <= len(data):
        count.one()
        name, length = struct.unpack_from("<4sI", data, at)
        if name == b"EXIF":
            return data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return b""


def _bmp(data: bytes) -> bytes:
    size, compression = struct.unpack_from("<I", data, 14)[0], 0
    if size >= 40:
        (compression,) = struct.unpack_from("<I", data, 30)
    if compression in _RUN_LENGTHS:
        raise InvalidImage("the BMP image is compressed in runs; save it without compression, or as PNG")
    return data
