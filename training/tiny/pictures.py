"""Drawings as PNG files of one size, whatever they were: PNG, WebP or SVG. Transparency is kept: training fills it."""

import io

import resvg_py
from PIL import Image

from training.tiny.emoji import Picture


def open_rgba(picture: Picture, px: int) -> Image.Image:
    """Decode to RGBA; an SVG is drawn at `px` pixels, a raster keeps its own size."""
    content = picture.read()
    if picture.is_svg:
        content = bytes(resvg_py.svg_to_bytes(svg_string=content.decode(), width=px, height=px))
    return Image.open(io.BytesIO(content)).convert("RGBA")


def as_png(picture: Picture, px: int) -> bytes:
    """The drawing as a PNG of `px` by `px` with its transparency. Scaled with colours times alpha: no dark rims."""
    image = open_rgba(picture, px)
    if image.size != (px, px):
        image = image.convert("RGBa").resize((px, px), Image.Resampling.BICUBIC).convert("RGBA")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
