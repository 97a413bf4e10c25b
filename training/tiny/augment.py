"""Random changes to a batch of drawings, as tensor operations on the whole batch.

A new art style differs from the known ones in outline, colour, shading and framing. So these are what is
changed here: a small affine warp, another background, colour, a smooth light falling across the picture,
noise, a blend with the same concept in another style. Nothing is mirrored: arrows and flags would change
their meaning. Legend: B batch, C channels, H and W height and width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.tiny.recipe import Augmentation

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_LUMA = (0.299, 0.587, 0.114)


def normalise(rgb_BCHW: Tensor) -> Tensor:
    """From 0..1 to what the encoder reads."""
    return (rgb_BCHW - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def augment(
    premultiplied_BCHW: Tensor, partners_BCHW: Tensor, px: int, how: Augmentation, draw: torch.Generator
) -> Tensor:
    """uint8 drawings, and the same concepts in other styles -> normalised float[B, 3, px, px]."""
    rgba = _warp(_blend(premultiplied_BCHW, partners_BCHW, how, draw), px, how, draw)
    rgb, alpha = rgba[:, :3], rgba[:, 3:]
    rgb = _colour(rgb, alpha, how, draw) * _light(len(rgb), px, how, draw)
    rgb = rgb + (1 - alpha) * _backgrounds(len(rgb), how, draw)
    grain = torch.randn(1, *rgb.shape[1:], generator=draw) * how.noise
    rgb = rgb + grain * _uniform(len(rgb), -1, 1, draw)
    return normalise(_erase(rgb, how, draw).clamp(0, 1))


def _uniform(count: int, low: float, high: float, draw: torch.Generator) -> Tensor:
    return torch.rand(count, 1, 1, 1, generator=draw) * (high - low) + low


def _chance(count: int, probability: float, draw: torch.Generator) -> Tensor:
    return (torch.rand(count, 1, 1, 1, generator=draw) < probability).float()


def _blend(rgba_BCHW: Tensor, partners_BCHW: Tensor, how: Augmentation, draw: torch.Generator) -> Tensor:
    count = len(rgba_BCHW)
    blended = torch.rand(count, generator=draw) < how.style_blend
    share = _uniform(count, 0.2, 0.6, draw)[blended]
    mixed_BCHW = rgba_BCHW.float() / 255
    mixed_BCHW[blended] = torch.lerp(mixed_BCHW[blended], partners_BCHW[blended].float() / 255, share)
    return mixed_BCHW


def _warp(rgba_BCHW: Tensor, px: int, how: Augmentation, draw: torch.Generator) -> Tensor:
    count = len(rgba_BCHW)
    angle = _uniform(count, -1, 1, draw).view(-1) * math.radians(how.rotate_degrees)
    zoom = torch.exp(_uniform(count, -how.scale_up, how.scale_down, draw)).view(-1)
    stretch = torch.exp(_uniform(count, -how.shear, how.shear, draw)).view(-1)
    shear = _uniform(count, -how.shear, how.shear, draw).view(-1)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = cosine * zoom * stretch, -sine * zoom + shear
    theta[:, 1, 0], theta[:, 1, 1] = sine * zoom, cosine * zoom / stretch
    theta[:, :, 2] = (torch.rand(count, 2, generator=draw) * 2 - 1) * 2 * how.shift
    grid = F.affine_grid(theta, [count, 4, px, px], align_corners=False)
    return F.grid_sample(rgba_BCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _colour(rgb_BCHW: Tensor, alpha_BCHW: Tensor, how: Augmentation, draw: torch.Generator) -> Tensor:
    """Saturation, hue, contrast and brightness; the alpha keeps empty pixels empty."""
    count = len(rgb_BCHW)
    luma = (rgb_BCHW * torch.tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    colourful = 1 - _chance(count, how.grayscale, draw)
    saturation = colourful * (1 + _uniform(count, -how.saturation, how.saturation, draw))
    chroma = _rotate_hue(rgb_BCHW - luma, how, draw)
    rgb_BCHW = luma + chroma * saturation
    contrast = 1 + _uniform(count, -how.contrast, how.contrast, draw)
    brightness = _uniform(count, -how.brightness, how.brightness, draw) * 0.5
    return ((rgb_BCHW - 0.5 * alpha_BCHW) * contrast + (0.5 + brightness) * alpha_BCHW).clamp(0, 1)


def _rotate_hue(chroma_BCHW: Tensor, how: Augmentation, draw: torch.Generator) -> Tensor:
    """Turn colours about the grey axis (Rodrigues' formula)."""
    count = len(chroma_BCHW)
    angle = _uniform(count, -1, 1, draw) * math.radians(how.hue_degrees)
    cross = chroma_BCHW.roll(1, 1) - chroma_BCHW.roll(-1, 1)
    grey = chroma_BCHW.mean(1, keepdim=True)
    return chroma_BCHW * torch.cos(angle) + cross * torch.sin(angle) / math.sqrt(3) + grey * (1 - torch.cos(angle))


def _light(count: int, px: int, how: Augmentation, draw: torch.Generator) -> Tensor:
    """A smooth field of brightness factors."""
    corners = torch.rand(count, 1, 3, 3, generator=draw) * 2 - 1
    strength = how.shading * _uniform(count, 0, 1, draw)
    return 1 + strength * F.interpolate(corners, size=(px, px), mode="bilinear", align_corners=True)


def _backgrounds(count: int, how: Augmentation, draw: torch.Generator) -> Tensor:
    white = _chance(count, how.white_background, draw)
    return white + (1 - white) * torch.rand(count, 3, 1, 1, generator=draw)


def _erase(rgb_BCHW: Tensor, how: Augmentation, draw: torch.Generator) -> Tensor:
    """Cover a random box with grey in some pictures."""
    count, px = len(rgb_BCHW), rgb_BCHW.shape[-1]
    line = torch.arange(px).float() / px
    centre = torch.rand(count, 2, generator=draw)
    half = torch.rand(count, 2, generator=draw) * 0.15 + 0.05
    inside = (line - centre[:, :, None]).abs() < half[:, :, None]
    box = (inside[:, 0, :, None] & inside[:, 1, None, :]).unsqueeze(1)
    return torch.where(box & (_chance(count, how.erase, draw) > 0), 0.5, rgb_BCHW)
