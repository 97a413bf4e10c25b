"""The engine's numbers on Triton's own /metrics, through the MetricFamily that Triton gives to a model.

Every update crosses to the server's process, so numbers are brought up to date now and then, not at each step.
"""

from __future__ import annotations

from typing import Any

from services.llama.engine.seam import Engine

SECONDS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
NOW = {
    "running": "Requests whose prompt or answer is being computed",
    "waiting": "Requests that wait to be computed",
    "slots": "Requests that can run at once",
    "blocks": "Blocks of 16 positions in the KV cache",
    "blocks_used": "Blocks that running requests hold; others may keep what can be reused",
}
COUNTED = {
    "prompt_tokens": "Positions of prompts asked for",
    "cached_tokens": "Positions of prompts that were reused, not computed",
    "tokens": "Tokens generated",
    "finished": "Requests answered to the end",
    "cancelled": "Requests whose client went away",
    "expired": "Requests whose deadline passed",
    "rejected": "Requests refused because the queue was full",
    "saved": "Requests whose client went away or whose deadline passed before anything was computed for them",
    "failed": "Requests that a defect or a shutdown ended",
    "envelopes_refused": "Visual tokens on the bus that failed a check",
    "preempted": "Times that a request gave up its memory to an older one, to be computed again",
    "steps": "Steps of the engine",
    "step_seconds": "Seconds that the steps took",
    "drafted": "Tokens guessed ahead",
    "accepted": "Tokens guessed ahead that were right",
}


class Gauges:
    """`family` is Triton's MetricFamily class; `certificate_ends` is in unix seconds, None without TLS."""

    def __init__(self, family: Any, certificate_ends: float | None = None) -> None:
        # the families own the metrics: they must live as long
        self._families: list[Any] = []
        self._now = {name: self._metric(family, family.GAUGE, name, text) for name, text in NOW.items()}
        self._counted = {
            name: self._metric(family, family.COUNTER, f"{name}_total", text) for name, text in COUNTED.items()
        }
        self._kv_use = self._metric(
            family, family.GAUGE, "kv_use", "How full the engine is, from 0 to 1: of places to run or of the KV cache"
        )
        self._visual = self._metric(family, family.GAUGE, "waiting_for_images", "Requests that wait for visual tokens")
        self._first_token = self._metric(
            family, family.HISTOGRAM, "first_token_seconds", "From submission to first token", buckets=SECONDS
        )
        if certificate_ends is not None:
            text = "When the certificate ends that Triton read at its start, in unix time"
            self._metric(family, family.GAUGE, "certificate_expires_timestamp_seconds", text).set(certificate_ends)
        self._told: dict[str, float] = dict.fromkeys((*NOW, *COUNTED, "kv_use", "visual"), 0.0)

    def _metric(self, family: Any, kind: Any, name: str, text: str, **options: Any) -> Any:
        made = family(name=f"ziya_llama_{name}", description=text, kind=kind)
        self._families.append(made)
        return made.Metric(labels={}, **options)

    def update(self, engine: Engine, outside: dict[str, int], waiting_for_images: int) -> None:
        """`outside` counts requests that ended before they came to the engine, by the names above."""
        stats = engine.stats()
        for name, metric in self._now.items():
            if self._changed(name, getattr(stats, name)):
                metric.set(self._told[name])
        for name, metric in self._counted.items():
            before = self._told[name]
            if self._changed(name, getattr(stats, name, 0) + outside.get(name, 0)):
                metric.increment(self._told[name] - before)
        # Whichever runs out first keeps the next request waiting.
        full = max(stats.running / max(1, stats.slots), stats.blocks_used / max(1, stats.blocks))
        if self._changed("kv_use", full):
            self._kv_use.set(self._told["kv_use"])
        if self._changed("visual", waiting_for_images):
            self._visual.set(waiting_for_images)
        for seconds in engine.first_token_seconds():
            self._first_token.observe(seconds)

    def _changed(self, name: str, value: float) -> bool:
        changed = self._told[name] != value
        self._told[name] = value
        return changed
