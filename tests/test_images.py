"""Strangers' bytes: what is accepted comes out upright, 8 bits, RGB over white; the rest is refused with a sentence."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ziya.errors import InvalidImage
from ziya.images import ImageLimits, decode, inspect

LIMITS = ImageLimits()
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(height: int = 24, width: int = 36) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (body, data))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_inspected_and_decoded(kind: str) -> None:
    image = noise()
    data = encode(image, kind)
    assert inspect(data, LIMITS) == (kind, 36, 24)
    pixels = decode(data, LIMITS)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (24, 36, 3)
    if kind in ("PNG", "BMP"):
        assert np.array_equal(pixels, np.asarray(image))


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(InvalidImage, match="not a PNG, JPEG, WebP, GIF or BMP"):
        inspect(encode(noise(), kind), LIMITS)


@pytest.mark.parametrize("data", [b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage, match="not a PNG"):
        decode(data, LIMITS)


def test_nothing_is_refused() -> None:
    with pytest.raises(InvalidImage, match="empty"):
        inspect(b"", LIMITS)


def test_too_many_bytes_are_refused() -> None:
    data = encode(noise(), "PNG")
    with pytest.raises(InvalidImage, match=f"{len(data)} bytes; at most 100"):
        inspect(data, ImageLimits(max_bytes=100))


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (12_000, 12_000), (7_100, 7_100)])
def test_a_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    for call in (inspect, decode):
        with pytest.raises(InvalidImage, match=f"{width} × {height}; at most"):
            call(png_header(width, height), LIMITS)


def test_a_webp_bomb_is_refused_before_pillow_allocates_its_canvas() -> None:
    side = 16_000 - 1
    canvas = struct.pack("<BBBB", 0x10, 0, 0, 0) + side.to_bytes(3, "little") * 2
    data = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + canvas
    with pytest.raises(InvalidImage, match="16000 × 16000; at most"):
        inspect(data, LIMITS)


def test_a_gif_whose_first_frame_is_larger_than_its_screen_is_measured_by_the_frame() -> None:
    data = bytearray(encode(noise().convert("P"), "GIF"))
    frame = data.index(b",", 13 + 3 * 256)
    data[frame + 5 : frame + 9] = struct.pack("<HH", 50_000, 50_000)
    with pytest.raises(InvalidImage):
        inspect(bytes(data), LIMITS)


def test_a_side_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidImage, match="pixels a side"):
        inspect(png_header(20_000, 1), LIMITS)


@pytest.mark.parametrize("lossless", [True, False])
def test_webp_headers_are_read_as_pillow_reads_them(lossless: bool) -> None:
    for width, height in [(1, 1), (300, 7), (255, 257)]:
        assert inspect(encode(noise(height, width), "WEBP", lossless=lossless), LIMITS) == ("WEBP", width, height)
    with_alpha = encode(noise(9, 300).convert("RGBA"), "WEBP", lossless=lossless, exif=b"Exif\0\0")
    assert inspect(with_alpha, LIMITS) == ("WEBP", 300, 9)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_image_is_refused(kind: str) -> None:
    data = encode(noise(64, 64), kind)
    for share in (0.01, 0.1, 0.5, 0.9):
        with pytest.raises(InvalidImage):
            decode(data[: int(len(data) * share)], LIMITS)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", FORMATS)
@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=30, deadline=None)
def test_a_damaged_image_decodes_or_is_refused(kind: str, seed: int) -> None:
    """Never any other error, whatever bytes are changed."""
    random = np.random.default_rng(seed)
    data = bytearray(encode(noise(), kind))
    for place in random.integers(0, len(data), size=8):
        data[place] = random.integers(0, 256)
    try:
        pixels = decode(bytes(data), ImageLimits(max_pixels=1_000_000))
    except InvalidImage:
        return
    assert pixels.ndim == 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = Image.new("RGB", (40, 20), "white")
    upright.paste("black", (0, 0, 10, 10))  # top left is black
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(encode(stored, kind, exif=exif.tobytes()), LIMITS)
    assert pixels.shape == (20, 40, 3)
    assert pixels[5, 5].max() < 60
    assert pixels[15, 35].min() > 200


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_refuse_a_good_image() -> None:
    pixels = decode(encode(noise(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\0\0"), LIMITS)
    assert pixels.shape == (24, 36, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    kind = "PNG"
    converted = image.quantize(4) if mode == "PA" else image.convert(mode)
    pixels = decode(encode(converted, kind), LIMITS)
    assert pixels[4, 1].max() == 0
    assert pixels[4, 6].min() == 255


def test_a_transparent_colour_is_laid_over_white() -> None:
    pixels = decode(encode(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3)), LIMITS)
    assert pixels.min() == 255


def test_half_transparent_is_half_white() -> None:
    pixels = decode(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG"), LIMITS)
    assert pixels[0, 0].tolist() == [127, 127, 127]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pixels = decode(encode(Image.fromarray(ramp), "PNG"), LIMITS)
    assert np.array_equal(pixels[..., 0], (ramp >> 8).astype(np.uint8))


@pytest.mark.parametrize(("mode", "kind"), [("1", "PNG"), ("L", "JPEG"), ("P", "GIF"), ("P", "BMP"), ("CMYK", "JPEG")])
def test_other_modes_become_rgb(mode: str, kind: str) -> None:
    image = noise().convert(mode)
    pixels = decode(encode(image, kind), LIMITS)
    assert pixels.shape == (24, 36, 3)
    assert np.abs(pixels.astype(int) - np.asarray(image.convert("RGB")).astype(int)).mean() < 25


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    red, green, blue = decode(data, LIMITS)[8, 8]
    assert red > 200
    assert max(green, blue) < 60
