"""How long prompts and answers are: a distribution as it is typed, and draws from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cli.text import CommandError

_DRAWS: dict[str, tuple[int, Callable[..., float]]] = {
    "fixed": (1, lambda draw, length: length),
    "uniform": (2, lambda draw, low, high: draw.integers(low, high, endpoint=True)),
    "normal": (2, lambda draw, mean, deviation: draw.normal(mean, deviation)),
    "exponential": (1, lambda draw, mean: draw.geometric(1 / mean)),
}


@dataclass(frozen=True)
class Lengths:
    """In tokens. `text` is how it was written."""

    text: str
    kind: str
    numbers: tuple[float, ...]

    @classmethod
    def parse(cls, text: str, name: str) -> Lengths:
        """From `64`, `uniform:16:128`, `normal:64:16` or `exponential:64`. Raises CommandError with the option."""
        kind, *words = text.split(":") if ":" in text else ("fixed", text)
        try:
            numbers = tuple(float(word) for word in words)
        except ValueError:
            numbers = ()
        if kind not in _DRAWS or len(numbers) != _DRAWS[kind][0] or not _possible(kind, numbers):
            forms = "64, uniform:16:128, normal:64:16 or exponential:64"
            raise CommandError(f"{name} is a length in tokens such as {forms}, not {text!r}", 2)
        return cls(text, kind, numbers)

    def draw(self, draw: np.random.Generator) -> int:
        """One length, at least 1."""
        return max(1, round(_DRAWS[self.kind][1](draw, *self.numbers)))


def _possible(kind: str, numbers: tuple[float, ...]) -> bool:
    if not all(math.isfinite(number) for number in numbers) or numbers[0] < 1:
        return False
    if kind == "uniform":
        return numbers[0] <= numbers[1] and all(number == int(number) for number in numbers)
    return kind != "normal" or numbers[1] >= 0
