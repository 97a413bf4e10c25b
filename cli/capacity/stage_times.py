"""How long each stage takes, as measured: data from a JSON file, which benchmarks/stage_times.py writes.

A stage's times are a few measured points (a batch of 1, 4, 16 …), with straight lines between them. All times are in
seconds. `around_seconds` is what a request spends in a stage beside the batch itself: decoding a picture, the calls,
the way over Redis; it does not grow with the load.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cli.text import CommandError

SHIPPED = Path(__file__).with_name("ziya-tiny-2-cores.json")

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Points = Annotated[dict[Annotated[int, Field(ge=1)], Annotated[float, Field(gt=0)]], Field(min_length=1)]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GatewayTimes(_Data):
    """Processor time of the gateway's one event loop, for a request and for each token of its answer."""

    request_seconds: Seconds
    token_seconds: Seconds
    start_seconds: Seconds


class BatchTimes(_Data):
    """Of vision or the Q-Former: `batch_seconds` by items in a batch.

    `spread` is the standard deviation of a batch's time over its mean: 0 is always the same, 1 like an exponential.
    """

    batch_seconds: Points
    spread: Annotated[float, Field(ge=0, le=3)] = 0.0
    around_seconds: Seconds
    start_seconds: Seconds

    @field_validator("batch_seconds")
    @classmethod
    def _in_order(cls, points: dict[int, float]) -> dict[int, float]:
        return dict(sorted(points.items()))

    def batch(self, items: int) -> float:
        return between(self.batch_seconds, items)

    def fastest(self, max_batch: int) -> float:
        """Seconds an item where batches are as large as is best for their throughput."""
        return min(self.batch(items) / items for items in range(1, max_batch + 1))


class LlamaTimes(_Data):
    """Of the engine: a decode step by requests running, a step of one prompt by its tokens.

    `around_seconds` lies between the client and the engine: gateway, Triton, and both ways of the connection.
    """

    step_seconds: Points
    prefill_seconds: Points
    around_seconds: Seconds
    start_seconds: Seconds

    @field_validator("step_seconds", "prefill_seconds")
    @classmethod
    def _in_order(cls, points: dict[int, float]) -> dict[int, float]:
        return dict(sorted(points.items()))

    def step(self, running: int, prompt_tokens: int) -> float:
        """Of one step that decodes a token for each of `running` and computes so many prompt tokens beside."""
        if not prompt_tokens:
            return between(self.step_seconds, running)
        prefill = between(self.prefill_seconds, prompt_tokens)
        if not running:
            return prefill
        # A step costs something by itself, and that is in both measurements.
        return between(self.step_seconds, running) + max(0.0, prefill - between(self.prefill_seconds, 0))


class StageTimes(_Data):
    """All of it. `measured` tells of machine, versions and day; `image_tokens` is what an image takes of a prompt."""

    name: str
    measured: dict[str, str]
    image_tokens: Annotated[int, Field(ge=0)]
    gateway: GatewayTimes
    vision: BatchTimes
    qformer: BatchTimes
    llama: LlamaTimes

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises CommandError with one sentence for what is not there or not as it should be."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise CommandError(f"cannot read the stage times {path}: {error.strerror}", 2) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise CommandError(f"the stage times {path} cannot be used: {where}: {first['msg'].lower()}", 2) from error


def between(points: Mapping[int, float], x: int) -> float:
    """The points' value at `x`, on straight lines between them and on the last ones beyond; never below 0.

    `points` are in ascending order. One point alone holds everywhere.
    """
    if x in points:
        return points[x]
    xs = list(points)
    if len(xs) == 1:
        return points[xs[0]]
    right = min(max(bisect_left(xs, x), 1), len(xs) - 1)
    low, high = xs[right - 1], xs[right]
    return max(0.0, points[low] + (points[high] - points[low]) * (x - low) / (high - low))
