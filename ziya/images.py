"""From bytes of a stranger to pixels, or a sentence why not. No torch.

Nothing is decoded before the header has been read and found acceptable: format by signature (PNG, JPEG,
WebP, GIF, BMP and no other of Pillow's many), size in bytes, number of blocks and scans (image_parts.py),
pixels, and length of a side. So a decompression bomb costs a few microseconds. What decodes comes out the
same for all formats: the first frame, upright by its Exif orientation, 8 bits, RGB, transparency laid over white.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from ziya.errors import InvalidImage
from ziya.image_parts import parts_of

_OPEN: dict[str, Callable[[Any], ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
# All that Pillow's plugins are known to raise on damaged files.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageLimits:
    """What is accepted: size of the file in bytes, pixels in all, pixels a side."""

    max_bytes: int = 20 << 20
    max_pixels: int = 50_000_000
    max_side: int = 16_384


def inspect(data: bytes, limits: ImageLimits) -> tuple[str, int, int]:
    """Format, width and height from the header alone. Raises InvalidImage."""
    image, _ = _open(data, limits)
    return _format_of(data), image.width, image.height


def decode(data: bytes, limits: ImageLimits) -> NDArray[np.uint8]:
    """The picture as uint8 [height, width, 3]. Raises InvalidImage."""
    image, orientation = _open(data, limits)
    try:
        image.load()
        rgb = _over_white(_upright(image, orientation))
    except _DAMAGED as error:
        raise InvalidImage(f"the image is damaged or cut off: {_format_of(data)} data cannot be decoded") from error
    return np.asarray(rgb)


def _open(data: bytes, limits: ImageLimits) -> tuple[ImageFile.ImageFile, int]:
    """The image with its header read and checked, not yet decoded, and its Exif orientation."""
    if not data:
        raise InvalidImage("the image is empty")
    if len(data) > limits.max_bytes:
        raise InvalidImage(f"the image has {len(data)} bytes; at most {limits.max_bytes} are accepted")
    kind = _format_of(data)
    try:
        if kind == "WEBP":
            # Pillow allocates the whole canvas on opening a WebP.
            _check_size(*_webp_size(data), limits)
        parts = parts_of(kind, data)
        image = _OPEN[kind](BytesIO(parts.data))
    except _DAMAGED as error:
        raise InvalidImage(f"the image is damaged or cut off: its {kind} header cannot be read") from error
    _check_size(image.width, image.height, limits)
    return image, parts.orientation


def _format_of(data: bytes) -> str:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "BMP"
    raise InvalidImage("the image is not a PNG, JPEG, WebP, GIF or BMP file")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP's canvas. Raises struct.error or ValueError when the header is cut off or unknown."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", data, 24)
        return 1 + low_width + (high_width << 16), 1 + low_height + (high_height << 16)
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("unknown first chunk")


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise InvalidImage(f"the image has no pixels: it is {width} × {height}")
    if max(width, height) > limits.max_side:
        raise InvalidImage(f"the image is {width} × {height}; at most {limits.max_side} pixels a side are accepted")
    if width * height > limits.max_pixels:
        raise InvalidImage(f"the image is {width} × {height}; at most {limits.max_pixels} pixels in all are accepted")


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits a pixel: Pillow would clip at 255 instead of scaling.
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        # Converting what is RGB already would copy it.
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
