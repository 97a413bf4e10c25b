"""Random changes to pictures, so that a picture looks the same whatever batch, process or order it is made in.

Every sample has a random stream of its own, a counter-based generator keyed by (seed, purpose, numbers). What is
drawn from it is worked out sample by sample in plain floats; what then runs over the whole batch only multiplies,
adds, compares and clamps element by element, which rounds alike at any place of any batch. So results are equal bit
for bit. Matrix products, sums along an axis and vectorised sines need not be.

    crop       a rectangle of half to all of the picture, sometimes mirrored (BLIP-2's training)
    drawings   for flat art: a new style differs from the known ones in outline, colour, shading and framing. So a small
               affine warp, another background, colour, hue, a smooth light falling across the picture, noise and an
               erased box. Nothing is mirrored: arrows and flags would change their meaning.

Legend: I images, H and W height and width, S side of the result, N numbers of a sample, L lines of the light's grid.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

CROP_SHARE = (0.5, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
MIRRORED = 0.5
_CROP_TRIES = 10
_LUMA = (0.299, 0.587, 0.114)
_LIGHT = 3
_NUMBERS = 32
# So many samples' planes stay in a core's cache from one operation to the next.
_CHUNK = 16


@dataclass(frozen=True)
class Drawing:
    """How far a drawing is changed before the encoder sees it: shares of the side or of the full range, or chances."""

    shift: float = 0.10
    scale_down: float = 0.25
    scale_up: float = 0.12
    rotate_degrees: float = 12.0
    shear: float = 0.08
    white_background: float = 0.7
    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.45
    hue_degrees: float = 14.0
    grayscale: float = 0.05
    shading: float = 0.35
    noise: float = 0.03
    erase: float = 0.15


def stream(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The random numbers of one sample for one purpose, the same in every process."""
    text = "/".join(map(str, (seed, purpose, *numbers)))
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, "<u8")))


def crop(image_HW3: NDArray[np.uint8], draw: np.random.Generator) -> NDArray[np.uint8]:
    """A random part of the picture, mirrored or not, whose area and ratio lie within CROP_SHARE and CROP_RATIO.

    Of a picture too long for that (a panorama) it is the middle, as large as the ratio allows.
    """
    height, width = image_HW3.shape[:2]
    across, down, mirrored, *tries = draw.random(3 + 2 * _CROP_TRIES).tolist()
    for share, ratio in zip(tries[::2], tries[1::2], strict=True):
        area = height * width * (CROP_SHARE[0] + (CROP_SHARE[1] - CROP_SHARE[0]) * share)
        aspect = CROP_RATIO[0] * (CROP_RATIO[1] / CROP_RATIO[0]) ** ratio
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            break
    else:
        wide = max(1, min(width, int(height * CROP_RATIO[1])))
        high = max(1, min(height, int(width / CROP_RATIO[0])))
        across = down = 0.5
    left, top = int(across * (width - wide + 1)), int(down * (height - high + 1))
    part_HW3 = image_HW3[top : top + high, left : left + wide]
    return part_HW3[:, ::-1] if mirrored < MIRRORED else part_HW3


def drawings(premultiplied_I4HW: Tensor, draws: Sequence[np.random.Generator], size: int, how: Drawing) -> Tensor:
    """uint8 red, green, blue (each times alpha) and alpha -> float32 [I, 3, size, size] between 0 and 1."""
    rgb_I3SS = torch.empty(len(draws), 3, size, size)
    for start in range(0, len(draws), _CHUNK):
        part = slice(start, start + _CHUNK)
        rgb_I3SS[part] = _changed(premultiplied_I4HW[part], draws[part], size, how)
    return rgb_I3SS


@dataclass(frozen=True)
class _Change:
    """What one sample's numbers come to; see the functions that read them."""

    warp: list[float]
    colour: list[float]
    light: list[float]
    background: list[float]
    grain: list[float]
    erased: list[float]


def _changed(premultiplied_I4HW: Tensor, draws: Sequence[np.random.Generator], size: int, how: Drawing) -> Tensor:
    changes = [_change(_Numbers(draw), how) for draw in draws]
    noise_I3SS = _noise(draws, size)
    rgba_I4SS = _warp(premultiplied_I4HW, _stack(changes, "warp"), size)
    rgb_I3SS = _colour(rgba_I4SS, _stack(changes, "colour"))
    rgb_I3SS *= _light(_stack(changes, "light"), size)
    rgb_I3SS += (1 - rgba_I4SS[:, 3:]) * _stack(changes, "background")[:, :, None, None]
    rgb_I3SS += noise_I3SS.mul_(_stack(changes, "grain")[:, :, None, None])
    for change, rgb_3SS in zip(changes, rgb_I3SS, strict=True):
        _erase(rgb_3SS, change.erased)
    return rgb_I3SS.clamp_(0, 1)


def _noise(draws: Sequence[np.random.Generator], size: int) -> Tensor:
    """Mean 0, variance 1. Even, not normal: a patch's sum is normal either way, and this is five times faster."""
    noise_I3SS = np.empty((len(draws), 3, size, size), np.float32)
    for draw, noise_3SS in zip(draws, noise_I3SS, strict=True):
        draw.random(out=noise_3SS, dtype=np.float32)
    return torch.from_numpy(noise_I3SS).sub_(0.5).mul_(math.sqrt(12))


def _stack(changes: Sequence[_Change], name: str) -> Tensor:
    return torch.tensor([getattr(change, name) for change in changes])


class _Numbers:
    """A sample's uniform numbers, each used once and in order."""

    def __init__(self, draw: np.random.Generator) -> None:
        self._next = iter(draw.random(_NUMBERS).tolist())

    def between(self, low: float, high: float) -> float:
        number: float = next(self._next)
        return low + (high - low) * number

    def around(self, strength: float) -> float:
        return self.between(-strength, strength)

    def chance(self, probability: float) -> bool:
        return self.between(0, 1) < probability


def _change(numbers: _Numbers, how: Drawing) -> _Change:
    shading, white = numbers.between(0, how.shading), numbers.chance(how.white_background)
    tint = [numbers.between(0, 1) for _ in range(3)]
    return _Change(
        warp=_warp_numbers(numbers, how),
        colour=_colour_numbers(numbers, how),
        light=[numbers.around(shading) for _ in range(_LIGHT * _LIGHT)],
        background=[1.0, 1.0, 1.0] if white else tint,
        grain=[numbers.around(how.noise)],
        erased=_erase_numbers(numbers, how),
    )


def _warp_numbers(numbers: _Numbers, how: Drawing) -> list[float]:
    """The affine map from a place in the result to one in the drawing, both from -1 to 1: two rows of x, y and one."""
    angle = math.radians(numbers.around(how.rotate_degrees))
    zoom = math.exp(numbers.between(-how.scale_up, how.scale_down))
    stretch, shear = math.exp(numbers.around(how.shear)), numbers.around(how.shear)
    across, down = 2 * numbers.around(how.shift), 2 * numbers.around(how.shift)
    cosine, sine = zoom * math.cos(angle), zoom * math.sin(angle)
    return [cosine * stretch, shear - sine, across, sine, cosine / stretch, down]


def _warp(picture_I4HW: Tensor, map_I6: Tensor, size: int) -> Tensor:
    line_S = (torch.arange(size) * 2 + 1) / size - 1
    map_6I11 = map_I6.T[:, :, None, None]
    grid_ISS2 = torch.empty(len(map_I6), size, size, 2)
    for axis in range(2):
        x_I11, y_I11, one_I11 = map_6I11[3 * axis : 3 * axis + 3]
        grid_ISS2[..., axis] = (x_I11 * line_S) + (y_I11 * line_S[:, None] + one_I11)
    return F.grid_sample(picture_I4HW.float().mul_(1 / 255), grid_ISS2, "bilinear", "zeros", align_corners=False)


def _colour_numbers(numbers: _Numbers, how: Drawing) -> list[float]:
    """Hue, saturation, contrast and brightness as one affine map: three rows of red, green, blue and alpha.

    Hue turns colours about the grey axis (Rodrigues' formula), saturation scales their distance from their own luma,
    and alpha stands where one would, so that empty pixels stay empty.
    """
    angle = math.radians(numbers.around(how.hue_degrees))
    saturation = (1 + numbers.around(how.saturation)) * (not numbers.chance(how.grayscale))
    contrast, brightness = 1 + numbers.around(how.contrast), 0.5 * numbers.around(how.brightness)
    grey, side = (1 - math.cos(angle)) / 3, math.sin(angle) / math.sqrt(3)
    turned = (math.cos(angle) + grey, grey - side, grey + side)
    rows: list[float] = []
    for row in range(3):
        mixed = (saturation * turned[column - row] + (1 - saturation) * _LUMA[column] for column in range(3))
        rows += [*(contrast * share for share in mixed), 0.5 + brightness - 0.5 * contrast]
    return rows


def _colour(rgba_I4SS: Tensor, map_I12: Tensor) -> Tensor:
    map_I3411 = map_I12.view(-1, 3, 4, 1, 1)
    rgb_I3SS = rgba_I4SS[:, 3:] * map_I3411[:, :, 3]
    for column in range(3):
        rgb_I3SS += rgba_I4SS[:, column : column + 1] * map_I3411[:, :, column]
    return rgb_I3SS.clamp_(0, 1)


def _light(light_I9: Tensor, size: int) -> Tensor:
    """A smooth field of brightness factors [I, 1, size, size]: values at a grid of points, and lines between them."""
    place_S = torch.linspace(0, _LIGHT - 1, size)
    weight_LS = (1 - (place_S - torch.arange(_LIGHT)[:, None]).abs()).clamp_(min=0)
    light_ILL = light_I9.view(-1, _LIGHT, _LIGHT)
    field_I1SS = torch.ones(len(light_I9), 1, size, size)
    for down in range(_LIGHT):
        line_IS = torch.zeros(len(light_I9), size)
        for across in range(_LIGHT):
            line_IS += light_ILL[:, down, across, None] * weight_LS[across]
        field_I1SS += line_IS[:, None, None] * weight_LS[down, :, None]
    return field_I1SS


def _erase_numbers(numbers: _Numbers, how: Drawing) -> list[float]:
    """Left, right, top and bottom of the erased box as shares of the side; of no box at all: nothing."""
    erased, x, y = numbers.chance(how.erase), numbers.between(0, 1), numbers.between(0, 1)
    wide, high = numbers.between(0.05, 0.2), numbers.between(0.05, 0.2)
    return [x - wide, x + wide, y - high, y + high] if erased else []


def _erase(rgb_3SS: Tensor, edges: Sequence[float]) -> None:
    """Paints the box grey."""
    if edges:
        left, right, top, bottom = (max(0, round(edge * rgb_3SS.shape[-1])) for edge in edges)
        rgb_3SS[:, top:bottom, left:right] = 0.5
