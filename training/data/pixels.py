"""From the bytes of pictures to what the encoder reads, changed at random or not, in batches.

A picture is checked and decoded as in serving (`ziya.images`); without augmentation the result is serving's bit for
bit. What is decoded and scaled once and then used again (a small square, for `none` and `drawing`) is kept in memory
up to a limit, by the content of the file. Each epoch goes through all pictures before any comes again, so nothing is
thrown out for a newer one: what came first stays, and the rest is decoded anew.

Legend: I images, H and W height and width, S side of the encoder's square, D side of the square a drawing is kept in.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from training.data.augment import CROP_RATIO, CROP_SHARE, MIRRORED, Drawing, crop, drawings, stream
from training.errors import BadConfig, BadSample
from training.recipe import Images
from ziya.errors import InvalidImage
from ziya.images import ImageLimits, decode, inspect
from ziya.model.preprocessing import Preprocessing

KEEP_BYTES = 256 << 20
Named = tuple[str, bytes]
_Picture = NDArray[np.uint8]
_Purpose = tuple[str, tuple[int, ...]]
# All that Pillow is known to raise on damaged metadata.
_BROKEN_EXIF = (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error)


class PixelSource:
    """See the module. `keep_bytes` is the memory for decoded squares, of every process that has such a source."""

    def __init__(
        self,
        preprocessing: Preprocessing,
        images: Images,
        seed: int,
        *,
        drawing: Drawing | None = None,
        limits: ImageLimits | None = None,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        if images.augment not in ("none", "crop", "drawing"):
            raise BadConfig(f"images.augment must be none, crop or drawing, not {images.augment!r}")
        self.preprocessing, self.images, self.seed = preprocessing, images, seed
        self.drawing = drawing if drawing is not None else Drawing()
        self._limits = limits if limits is not None else ImageLimits()
        self._room = keep_bytes
        self._kept: dict[bytes, _Picture] = {}

    def pixels(self, images: Sequence[Named], positions: Sequence[int]) -> tuple[Tensor, list[BadSample | None]]:
        """float32 [I, 3, S, S] of images given as (key, file), and what is wrong with them; a bad one is all zeros.

        `positions` are those of the samples: images of one position are changed alike.
        """
        return self._pixels(images, [("sample", (position,)) for position in positions])

    def views(
        self, images: Sequence[Named], numbers: Sequence[int], views: Sequence[int]
    ) -> tuple[Tensor, list[BadSample | None]]:
        """The same for views to be kept: changed by the image's number in its dataset and the view's."""
        return self._pixels(images, [("view", pair) for pair in zip(numbers, views, strict=True)])

    def description(self) -> dict[str, Any]:
        """All that decides the pixels of a picture, as JSON."""
        kind = self.images.augment
        strengths: dict[str, Any] = {}
        if kind == "crop":
            strengths = {"share": list(CROP_SHARE), "ratio": list(CROP_RATIO), "mirrored": MIRRORED}
        if kind == "drawing":
            strengths = asdict(self.drawing)
        return {
            "preprocessing": json.loads(self.preprocessing.to_json()),
            "augment": kind,
            "strengths": strengths,
            "seed": None if kind == "none" else self.seed,
        }

    def _pixels(self, images: Sequence[Named], purposes: Sequence[_Purpose]) -> tuple[Tensor, list[BadSample | None]]:
        decoded = [self._decoded(key, data) for key, data in images]
        there = [
            (place, picture, purpose)
            for place, (picture, purpose) in enumerate(zip(decoded, purposes, strict=True))
            if not isinstance(picture, BadSample)
        ]
        size = self.preprocessing.size
        pixels_I3SS = torch.zeros(len(images), 3, size, size)
        if there:
            places, pictures, wanted = zip(*there, strict=True)
            pixels_I3SS[list(places)] = self._changed(pictures, wanted)
        return pixels_I3SS, [one if isinstance(one, BadSample) else None for one in decoded]

    def _changed(self, pictures: Sequence[_Picture], purposes: Sequence[_Purpose]) -> Tensor:
        if self.images.augment == "none":
            return torch.from_numpy(np.stack([self.preprocessing(picture) for picture in pictures]))
        draws = [stream(self.seed, purpose, *numbers) for purpose, numbers in purposes]
        if self.images.augment == "crop":
            cropped = [crop(picture, draw) for picture, draw in zip(pictures, draws, strict=True)]
            return torch.from_numpy(np.stack([self.preprocessing(picture) for picture in cropped]))
        rgb_I3SS = drawings(torch.from_numpy(np.stack(pictures)), draws, self.preprocessing.size, self.drawing)
        std_311 = torch.tensor(self.preprocessing.std).view(3, 1, 1)
        mean_311 = torch.tensor(self.preprocessing.mean).view(3, 1, 1)
        return rgb_I3SS.mul_(255 * self.preprocessing.rescale / std_311).sub_(mean_311 / std_311)

    def _decoded(self, key: str, data: bytes) -> _Picture | BadSample:
        try:
            if self.images.augment == "crop":
                return decode(data, self._limits)
            return self._kept_or(data, self._drawing if self.images.augment == "drawing" else self._served)
        except InvalidImage as error:
            return BadSample(key, f"bad image: {error}")

    def _kept_or(self, data: bytes, decoder: Callable[[bytes], _Picture]) -> _Picture:
        name = hashlib.blake2b(data, digest_size=16).digest()
        if (known := self._kept.get(name)) is not None:
            return known
        picture = decoder(data)
        if picture.nbytes <= self._room:
            self._kept[name] = picture
            self._room -= picture.nbytes
        return picture

    def _served(self, data: bytes) -> _Picture:
        """uint8 [S, S, 3]: serving's own square, which its preprocessing then only normalises."""
        size = self.preprocessing.size
        square = Image.fromarray(decode(data, self._limits)).resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(square)

    def _drawing(self, data: bytes) -> _Picture:
        """uint8 [4, D, D], colours times alpha: a third larger than the encoder's square, for a warp that enlarges."""
        side = round(self.preprocessing.size * 4 / 3)
        square = _transparent(data, self._limits).convert("RGBa").resize((side, side), Image.Resampling.BICUBIC)
        return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _transparent(data: bytes, limits: ImageLimits) -> Image.Image:
    """The picture as RGBA. Raises InvalidImage."""
    # Serving's decoder first: what it accepts, Pillow can decode once more.
    opaque = Image.fromarray(decode(data, limits))
    image = Image.open(BytesIO(data), formats=(inspect(data, limits)[0],))
    if image.mode.startswith("I") or not image.has_transparency_data:
        return opaque.convert("RGBA")
    try:
        return ImageOps.exif_transpose(image).convert("RGBA")
    except _BROKEN_EXIF:
        return image.convert("RGBA")
