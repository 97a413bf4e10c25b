"""Pictures to show: made from a seed or read from a folder, fresh ones and ones that were shown before."""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from cli.load.request import Picture
from cli.text import CommandError
from ziya.errors import InvalidImage
from ziya.images import ImageLimits, inspect

REMEMBERED = 100
PREPARING_SECONDS = 5.0
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}


class Album:
    """Shows pictures of `source`; with the odds `reuse` one of the last hundred that it has shown before.

    When the source has no more, all are shown before: the caller is told so, and counts them as that.
    """

    def __init__(self, source: Iterator[Picture], reuse: float) -> None:
        self._source, self._reuse = source, reuse
        self._ready: deque[Picture] = deque()
        self._shown: deque[Picture] = deque(maxlen=REMEMBERED)

    def prepare(self, count: int) -> None:
        """Makes or reads so many fresh pictures now: while the load runs, that would hold up its clock.

        After some seconds it is left at those that there are, and the rest is made when it is needed.
        """
        began = time.monotonic()
        for picture in islice(self._source, count):
            self._ready.append(picture)
            if time.monotonic() - began > PREPARING_SECONDS:
                return

    def show(self, odds: float, which: float) -> tuple[Picture, bool]:
        """A picture, and whether it was shown before. Both numbers are drawn from 0 to 1."""
        fresh = None if self._shown and odds < self._reuse else self._next()
        if fresh is None:
            return self._shown[int(which * len(self._shown))], True
        self._shown.append(fresh)
        return fresh, False

    def _next(self) -> Picture | None:
        return self._ready.popleft() if self._ready else next(self._source, None)


def generated(size: int, seed: int, nonce: int) -> Iterator[Picture]:
    """JPEGs of `size` x `size` pixels, coarse coloured noise, each unlike all others; without end."""
    draw = np.random.default_rng((seed, nonce))
    while True:
        coarse = draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(coarse).resize((size, size)).save(stream, "JPEG", quality=85)
        yield Picture(stream.getvalue(), "jpeg")


def from_folder(folder: Path) -> Iterator[Picture]:
    """The image files of a folder, by name, each once, as they are. Raises CommandError when one cannot be used."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    except OSError as error:
        raise CommandError(f"cannot read {folder}: {(error.strerror or str(error)).lower()}", 2) from error
    if not paths:
        raise CommandError(f"there is no picture in {folder} ({', '.join(sorted(_SUFFIXES))})", 2)
    return map(_read, paths)


def _read(path: Path) -> Picture:
    try:
        data = path.read_bytes()
        kind, _, _ = inspect(data, ImageLimits())
    except OSError as error:
        raise CommandError(f"cannot read {path}: {(error.strerror or str(error)).lower()}", 2) from error
    except InvalidImage as error:
        raise CommandError(f"{path}: {error}", 2) from error
    return Picture(data, kind.lower())
