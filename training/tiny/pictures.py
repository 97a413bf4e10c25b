"""Drawings as arrays: every PNG, WebP and SVG decoded once into one uint8 block.

For training the alpha channel is kept (colours premultiplied), so that the background can be changed.
For testing a picture takes the road of a served one: over white, then the checkpoint's own preprocessing.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

from training.tiny.emoji import Picture


def open_rgba(picture: Picture, px: int) -> Image.Image:
    """Decode to RGBA; an SVG is drawn at `px` pixels, a raster keeps its own size."""
    content = picture.read()
    if picture.is_svg:
        content = bytes(resvg_py.svg_to_bytes(svg_string=content.decode(), width=px, height=px))
    return Image.open(io.BytesIO(content)).convert("RGBA")


def over_white(image: Image.Image) -> Image.Image:
    """Composite transparent pixels over white, as serving does."""
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def as_png(picture: Picture, px: int) -> bytes:
    """The drawing as a PNG of `px` by `px` with its transparency. Scaled with colours times alpha: no dark rims."""
    image = open_rgba(picture, px)
    if image.size != (px, px):
        image = image.convert("RGBa").resize((px, px), Image.Resampling.BICUBIC).convert("RGBA")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def decode_premultiplied(picture: Picture, px: int) -> NDArray[np.uint8]:
    """uint8[4, px, px]: red, green, blue (each times alpha) and alpha."""
    square = open_rgba(picture, px).convert("RGBa").resize((px, px), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def decode_all(pictures: Sequence[Picture], px: int, threads: int) -> NDArray[np.uint8]:
    """uint8[N, 4, px, px] for all pictures, in their order."""
    with ThreadPoolExecutor(threads) as pool:
        return np.stack(list(pool.map(lambda picture: decode_premultiplied(picture, px), pictures)))
