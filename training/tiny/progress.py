"""What a long step prints and keeps: one line now and then, and its state about once a minute.

A killed step starts again from its last state; each training step draws from a generator seeded by its
number, so a step that was interrupted ends with the same weights as one that was not.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PRINT_SECONDS = 10.0


def generator(seed: int, step: int) -> torch.Generator:
    """The randomness of one training step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """A state saved before, if any. Only tensors and plain values are read, no code."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


class Progress:
    """Clock of one step: `tick` after every training step."""

    def __init__(self, name: str, first: int, steps: int, save: Callable[[], None], save_seconds: float) -> None:
        self.name, self.first, self.steps = name, first, steps
        self.save, self.save_seconds = save, save_seconds
        self.started = self.printed = self.saved = time.monotonic()
        self.printed_step = first
        self.losses: dict[str, list[float]] = {}

    def tick(self, step: int, samples: int, lr: float, **losses: float) -> None:
        for name, loss in losses.items():
            self.losses.setdefault(name, []).append(loss)
        now = time.monotonic()
        if now - self.printed >= PRINT_SECONDS or step == self.steps:
            self._print(step, samples, lr, now)
        if now - self.saved >= self.save_seconds or step == self.steps:
            self.save()
            self.saved = time.monotonic()

    def _print(self, step: int, samples: int, lr: float, now: float) -> None:
        seconds = max(now - self.printed, 1e-6)
        rate = (step - self.printed_step) * samples / seconds
        left = (self.steps - step) * (now - self.started) / max(1, step - self.first)
        means = " ".join(f"{name} {sum(values) / len(values):.3f}" for name, values in self.losses.items())
        print(
            f"{self.name} {step}/{self.steps}  {means}  lr {lr:.1e}  {rate:.0f} samples/s  {left / 60:.1f} min left",
            flush=True,
        )
        self.printed, self.printed_step, self.losses = now, step, {}
