"""Stage times for tests of the capacity simulation: everything instant but what a test names."""

from __future__ import annotations

from typing import Any

from cli.capacity.journey import Terms
from cli.capacity.simulate import Limits
from cli.capacity.stage_times import StageTimes

INSTANT = 1e-7
AMPLE = Limits(terms=Terms(max_in_flight=10**6), max_queue=10**6, bus_max_backlog=10**6, request_timeout=1e6)
ONE_EACH = {"gateway": 1, "vision": 1, "qformer": 1, "llama": 1}


def times(**stages: dict[str, Any]) -> StageTimes:
    """`vision={"batch_seconds": …}` and so on, over instant ones."""
    batch = {"batch_seconds": {1: INSTANT}, "around_seconds": 0.0, "start_seconds": 0.0}
    llama = {"step_seconds": {1: INSTANT}, "prefill_seconds": {1: INSTANT}, "around_seconds": 0.0, "start_seconds": 0.0}
    gateway = {"request_seconds": 0.0, "token_seconds": 0.0, "start_seconds": 0.0}
    whole = {"gateway": gateway, "vision": batch, "qformer": batch, "llama": llama}
    made = {name: {**stage, **stages.get(name, {})} for name, stage in whole.items()}
    return StageTimes.model_validate({"name": "of a test", "measured": {}, "image_tokens": 0, **made})
