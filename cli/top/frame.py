"""What `ziya top` shows, as numbers: one frame, made of a window. Times are in seconds, rates a second.

None stands where nothing happened within the window, or where the stage does not have such a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cli.top.page import STAGES
from cli.top.window import Stage, Window, share

REFUSED = ("Overloaded", "RateLimited")


@dataclass(frozen=True)
class Spread:
    """A distribution's middle and its slow end."""

    p50: float | None = None
    p95: float | None = None


@dataclass(frozen=True)
class Traffic:
    """What clients see, of all gateways together."""

    requests: float
    answered: float
    refused: float
    left: float
    failed: float
    retried: float
    fallback: float
    in_flight: float
    waiting: float
    tokens: float
    images: float
    image_cache: float | None
    first_text: Spread
    between_tokens: Spread
    whole_answer: Spread
    bus: bool | None


@dataclass(frozen=True)
class Row:
    """One stage: how many of its processes answer, and its work. `rate` counts answers, images or tokens."""

    stage: str
    up: int
    known: int
    rate: float
    unit: str
    queued: float
    queue: Spread
    work: Spread
    batch: float | None
    cache: float | None
    shed: float
    saved: float


@dataclass(frozen=True)
class Engine:
    """The language model's memory and places."""

    running: float
    slots: float
    waiting_for_images: float
    kv_use: float
    preempted: float


@dataclass(frozen=True)
class Frame:
    """One look at the whole stack, over so many seconds."""

    seconds: float
    traffic: Traffic | None
    rows: tuple[Row, ...]
    engine: Engine | None
    bus_backlog: float | None
    bus_lag: Spread
    strangers: tuple[str, ...]

    @property
    def anybody(self) -> bool:
        return any(row.up for row in self.rows)


def frame_of(window: Window) -> Frame:
    stages = {name: window.stage(name) for name in STAGES}
    gateway, vision, qformer, llama = stages.values()
    rows = (_gateway_row(gateway), _vision_row(vision), _qformer_row(qformer), _llama_row(llama, gateway))
    return Frame(
        seconds=window.seconds,
        traffic=_traffic(gateway) if gateway.up else None,
        rows=tuple(row for row in rows if row.known),
        engine=_engine(llama) if llama.up else None,
        bus_backlog=qformer.value("ziya_qformer_bus_backlog") / qformer.up if qformer.up else None,
        bus_lag=_spread(qformer, "ziya_qformer_bus_lag_seconds"),
        strangers=tuple(window.strangers()),
    )


def _traffic(stage: Stage) -> Traffic:
    def ended(outcomes: Sequence[str]) -> float:
        return sum(stage.rate("ziya_gateway_requests_total", outcome=outcome) for outcome in outcomes)

    every, ok = stage.rate("ziya_gateway_requests_total"), ended(["ok"])
    refused, left = ended(REFUSED), ended(["Cancelled"])
    images = stage.grown("ziya_gateway_images_total")
    return Traffic(
        requests=every,
        answered=ok,
        refused=refused,
        left=left,
        failed=max(0.0, every - ok - refused - left),
        retried=stage.rate("ziya_gateway_retries_total"),
        fallback=stage.rate("ziya_gateway_inline_total"),
        in_flight=stage.value("ziya_gateway_in_flight"),
        waiting=stage.value("ziya_gateway_waiting"),
        tokens=stage.rate("ziya_gateway_completion_tokens_total"),
        images=stage.rate("ziya_gateway_images_total"),
        image_cache=share(stage.grown("ziya_gateway_images_total", cached="true"), images),
        first_text=_spread(stage, "ziya_gateway_first_token_seconds"),
        between_tokens=_spread(stage, "ziya_gateway_inter_token_seconds"),
        whole_answer=_spread(stage, "ziya_gateway_request_seconds"),
        bus=stage.value("ziya_gateway_bus_up") == stage.up,
    )


def _gateway_row(stage: Stage) -> Row:
    return Row(
        stage="gateway",
        up=stage.up,
        known=stage.known,
        rate=stage.rate("ziya_gateway_requests_total", outcome="ok"),
        unit="answers",
        queued=stage.value("ziya_gateway_waiting"),
        queue=_spread(stage, "ziya_gateway_wait_seconds"),
        work=_spread(stage, "ziya_gateway_request_seconds"),
        batch=None,
        cache=share(stage.grown("ziya_gateway_images_total", cached="true"), stage.grown("ziya_gateway_images_total")),
        shed=stage.rate("ziya_gateway_shed_total"),
        saved=stage.rate("ziya_gateway_bus_withdrawn_total"),
    )


def _vision_row(stage: Stage) -> Row:
    asked = stage.grown("ziya_vision_features_total")
    computed = stage.grown("ziya_vision_features_total", source="computed")
    return _batched("vision", stage, stage.rate("ziya_vision_features_total"), share(asked - computed, asked))


def _qformer_row(stage: Stage) -> Row:
    done = stage.grown("ziya_qformer_works_total")
    cached = stage.grown("ziya_qformer_works_total", outcome="cached")
    saved = stage.rate("ziya_qformer_works_total", outcome="DeadlineExceeded")
    return _batched("qformer", stage, stage.rate("ziya_qformer_batch_size_sum"), share(cached, done), saved)


def _batched(name: str, stage: Stage, rate: float, cache: float | None, saved: float = 0.0) -> Row:
    batch = f"ziya_{name}_batch"
    return Row(
        stage=name,
        up=stage.up,
        known=stage.known,
        rate=rate,
        unit="images",
        queued=stage.value(f"{batch}_queued"),
        queue=_spread(stage, f"{batch}_queue_seconds"),
        work=_spread(stage, f"{batch}_compute_seconds"),
        batch=stage.mean(f"{batch}_size"),
        cache=cache,
        shed=stage.rate(f"{batch}_dropped_total", reason="full"),
        saved=saved + sum(stage.rate(f"{batch}_dropped_total", reason=reason) for reason in ("expired", "cancelled")),
    )


def _llama_row(stage: Stage, gateway: Stage) -> Row:
    """Of its queue, only gateways tell: the language model says in each answer how long it waited."""
    return Row(
        stage="llama",
        up=stage.up,
        known=stage.known,
        rate=stage.rate("ziya_llama_tokens_total"),
        unit="tokens",
        queued=stage.value("ziya_llama_waiting"),
        queue=_spread(gateway, "ziya_gateway_stage_seconds", stage="llama_queue"),
        work=_spread(stage, "ziya_llama_first_token_seconds"),
        batch=share(stage.grown("ziya_llama_tokens_total"), stage.grown("ziya_llama_steps_total")),
        cache=share(stage.grown("ziya_llama_cached_tokens_total"), stage.grown("ziya_llama_prompt_tokens_total")),
        shed=stage.rate("ziya_llama_rejected_total"),
        saved=stage.rate("ziya_llama_saved_total"),
    )


def _engine(stage: Stage) -> Engine:
    return Engine(
        running=stage.value("ziya_llama_running"),
        slots=stage.value("ziya_llama_slots"),
        waiting_for_images=stage.value("ziya_llama_waiting_for_images"),
        kv_use=stage.value("ziya_llama_kv_use") / stage.up,
        preempted=stage.rate("ziya_llama_preempted_total"),
    )


def _spread(stage: Stage, name: str, /, **labels: str) -> Spread:
    return Spread(stage.quantile(name, 0.5, **labels), stage.quantile(name, 0.95, **labels))
