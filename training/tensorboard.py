"""TensorBoard's event files, through torch's own writer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from training.progress import Pace, StepReport


class TensorBoard:
    """Scalars by name: losses, losses by source, rate, gradient norm, speed, evaluation."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._notes: list[str] = []

    def step(self, report: StepReport, pace: Pace) -> None:
        if self._writer is None:
            # A resumed run takes the place of what one before it wrote from this step on.
            self._writer = SummaryWriter(str(self._folder), purge_step=report.step)
            for text in self._notes:
                self._writer.add_text("note", text, report.step)
        values = {f"loss/{name}": loss for name, loss in report.losses.items()}
        values |= {f"source/{name}": loss for name, loss in report.by_source.items()}
        values |= {f"rate/{name}": rate for name, rate in report.rates.items()}
        values |= {"grad_norm": report.grad_norm, "speed/tokens_a_second": pace.tokens_a_second}
        values |= {"speed/samples_a_second": pace.samples_a_second}
        values |= {"speed/mfu": pace.mfu} if pace.mfu is not None else {}
        self._add(values, report.step)

    def checkpoint(self, step: int, metrics: Mapping[str, float], seconds: float) -> None:
        self._add({f"check/{name}": value for name, value in metrics.items()}, step)
        if self._writer is not None:
            self._writer.flush()

    def note(self, text: str) -> None:
        if self._writer is None:
            self._notes.append(text)
        else:
            self._writer.add_text("note", text)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _add(self, values: Mapping[str, float], step: int) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
