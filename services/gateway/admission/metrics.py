"""The numbers of admission and quotas, all under `ziya_gateway_`. Keys go by their names, never by their values."""

from __future__ import annotations

from ziya.telemetry import Metrics

MAX_NAMES = 500


class AdmissionMetrics:
    """Made once in app.py and handed down."""

    def __init__(self, metrics: Metrics) -> None:
        self.waiting = metrics.gauge("waiting", "Requests that wait for a place")
        self.images = metrics.gauge("images_in_flight", "Images of requests without text yet")
        self.tokens = metrics.gauge(
            "tokens_in_flight", "Tokens that requests being answered may take, prompt and answer"
        )
        self.body_bytes = metrics.gauge("body_bytes_in_flight", "Bytes of the bodies of requests inside")
        self.wait = metrics.histogram("wait_seconds", "Seconds that requests waited for a place and got it")
        self._shed = metrics.counter(
            "shed", "Requests refused or dropped before any work was done, by reason", ("reason",)
        )
        self._key_shed = metrics.counter("key_shed", "The same, by the name of the API key", ("key", "reason"))
        self._key_tokens = metrics.counter(
            "key_tokens", "Tokens of prompts and answers, by the name of the API key", ("key",)
        )
        self._key_images = metrics.counter("key_images", "Images shown, by the name of the API key", ("key",))
        self.fallback = metrics.counter(
            "quota_fallback", "Requests whose key's limits were kept by this process alone, by reason", ("reason",)
        )
        self._names: set[str] = set()

    def shed(self, reason: str, key: str) -> None:
        self._shed.labels(reason).inc()
        self._key_shed.labels(self._name(key), reason).inc()

    def used(self, key: str, images: int, tokens: int) -> None:
        self._key_images.labels(self._name(key)).inc(images)
        self._key_tokens.labels(self._name(key)).inc(tokens)

    def _name(self, key: str) -> str:
        """So many names of keys at most: files change, and what Prometheus once saw it keeps."""
        if len(self._names) < MAX_NAMES:
            self._names.add(key)
        return key if key in self._names else "other"
