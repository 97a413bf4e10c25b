"""What is asked of the stages, by arithmetic alone: the work in replicas, and what a request takes that is alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cli.capacity.arrivals import Mix
from cli.capacity.simulate import Limits
from cli.capacity.stage_times import StageTimes


@dataclass(frozen=True)
class Goal:
    """`rps` requests a second of this mix, the 99th percentile of their first token within `p99` seconds."""

    rps: float
    p99: float
    mix: Mix


def loads(rps: float, mix: Mix, times: StageTimes, limits: Limits) -> dict[str, float]:
    """The work of each stage, in replicas that compute without a pause at their best throughput."""
    slots = limits.engine.slots
    images = rps * mix.image_share * (1 - mix.reuse)
    prefill = max(0.0, times.llama.step(0, max(1, round(_prompt(mix, times)))) - times.llama.step(0, 1))
    # A prompt's step gives the first token; each further one is a share of a step that decodes for all slots.
    decode = mix.answer_tokens * times.llama.step(slots, 0) / slots
    return {
        "gateway": rps * (times.gateway.request_seconds + mix.answer_tokens * times.gateway.token_seconds),
        "vision": images * times.vision.fastest(limits.vision_max_batch),
        "qformer": images * times.qformer.fastest(limits.qformer_max_batch),
        "llama": rps * (prefill + decode),
    }


def alone(mix: Mix, times: StageTimes, limits: Limits) -> dict[str, float]:
    """Seconds to the first token when nobody else is there, by stage; with a fresh image if more than 1 % have one."""
    fresh = mix.image_share * (1 - mix.reuse) > 0.01
    prompt = mix.prompt_tokens + (times.image_tokens if fresh else 0)
    steps = math.ceil(prompt / limits.engine.prefill_tokens)
    parts = {
        "gateway": times.gateway.request_seconds,
        "llama": steps * times.llama.step(0, math.ceil(prompt / steps)) + times.llama.around_seconds,
    }
    if fresh:
        parts["vision"] = times.vision.batch(1) + times.vision.around_seconds
        parts["qformer"] = times.qformer.batch(1) + times.qformer.around_seconds
    return parts


def _prompt(mix: Mix, times: StageTimes) -> float:
    return mix.prompt_tokens + mix.image_share * times.image_tokens
