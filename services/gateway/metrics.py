"""The gateway's numbers, all under `ziya_gateway_`."""

from __future__ import annotations

from services.gateway.job import Summary
from ziya.errors import ZiyaError
from ziya.telemetry import Metrics

INTER_TOKEN_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)


class GatewayMetrics:
    """Made once in app.py and handed down."""

    def __init__(self, metrics: Metrics) -> None:
        self.registry = metrics.registry
        self.requests = metrics.counter(
            "requests", "Requests that ended, by face and by error (ok for none)", ("face", "outcome")
        )
        self.in_flight = metrics.gauge("in_flight", "Requests being answered")
        self.first_token = metrics.histogram("first_token_seconds", "From a request's arrival to its first text")
        self.inter_token = metrics.histogram(
            "inter_token_seconds",
            "Seconds between two responses of the language model within an answer, divided over the later one's tokens "
            "and observed once for each of them; the first response's are not in it",
            buckets=INTER_TOKEN_SECONDS,
        )
        self.duration = metrics.histogram("request_seconds", "From a request's arrival to its last text")
        self.stage = metrics.histogram("stage_seconds", "Seconds that requests spent in a stage", ("stage",))
        self.completion_tokens = metrics.counter("completion_tokens", "Tokens written by the language model")
        self.images = metrics.counter(
            "images", "Images shown, by whether their visual tokens were at hand", ("cached",)
        )
        self.inline = metrics.counter("inline", "Requests that took the inline path instead of Redis", ("reason",))
        self.retries = metrics.counter("retries", "Attempts made again before the first text, by error", ("error",))
        self.bus_up = metrics.gauge("bus_up", "1 while Redis is used, 0 while requests go inline")

    def ended(self, face: str, error: ZiyaError | None) -> None:
        """Counts a request's end."""
        self.requests.labels(face, type(error).__name__ if error else "ok").inc()

    def answered(self, summary: Summary) -> None:
        """Counts what an answer took."""
        self.duration.observe(summary.stage_seconds["total"])
        self.completion_tokens.inc(summary.usage.completion)
        for stage, seconds in summary.stage_seconds.items():
            self.stage.labels(stage).observe(seconds)
        for image in summary.images:
            self.images.labels(str(image.cached).lower()).inc()
