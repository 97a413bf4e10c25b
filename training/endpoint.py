"""Progress for the operator: the JSON of Kubeflow's KEP-2779, posted by the first process.

    {"trainerStatus": {"progressPercentage": 24, "estimatedRemainingSeconds": 310, "lastUpdatedTime": "…",
                       "metrics": [{"name": "loss", "value": "1.234"}, …]}}

transformers' own KubeflowCallback speaks the same, so one endpoint serves both. The newest report wins, at most one
goes out in five seconds, and nothing that the network does can hold or stop the run: a thread of its own posts,
failures are counted and named once in the log.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import ssl
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.progress import Pace, StepReport

log = logging.getLogger(__name__)
POST_SECONDS, TOKEN_SECONDS, TIMEOUT_SECONDS = 5.0, 300.0, 5.0


@dataclass(frozen=True)
class EndpointConfig:
    """Where to post, and with which token and authority (files that the kubelet keeps fresh)."""

    url: str
    token_file: Path | None = None
    ca_file: Path | None = None

    @classmethod
    def from_environment(cls) -> EndpointConfig | None:
        """What Kubeflow's names say; None when there is no endpoint."""
        url = os.environ.get("KUBEFLOW_TRAINER_SERVER_URL")
        token, authority = (os.environ.get(f"KUBEFLOW_TRAINER_SERVER_{what}") for what in ("TOKEN", "CA_CERT"))
        return cls(url, Path(token) if token else None, Path(authority) if authority else None) if url else None


class Endpoint:
    """A sink; `failures` counts posts that were not accepted."""

    def __init__(self, config: EndpointConfig, post_seconds: float = POST_SECONDS) -> None:
        self.config, self.post_seconds = config, post_seconds
        self.failures = 0
        self._newest: dict[str, Any] | None = None
        self._there = threading.Condition()
        self._closing = False
        self._token, self._token_read = "", float("-inf")
        self._thread = threading.Thread(target=self._run, name="endpoint", daemon=True)
        self._thread.start()

    def step(self, report: StepReport, pace: Pace) -> None:
        self._offer(status(report, pace))

    def checkpoint(self, step: int, metrics: Mapping[str, float], seconds: float) -> None:
        """Evaluations are in the log; the status shows how training goes."""

    def note(self, text: str) -> None:
        """Notes are in the log."""

    def close(self) -> None:
        """Posts what is newest and ends; waits no longer than one post may take."""
        with self._there:
            self._closing = True
            self._there.notify()
        self._thread.join(2 * TIMEOUT_SECONDS)

    def _offer(self, value: dict[str, Any]) -> None:
        with self._there:
            self._newest = value
            self._there.notify()

    def _run(self) -> None:
        while True:
            with self._there:
                self._there.wait_for(lambda: self._newest is not None or self._closing)
                value, self._newest = self._newest, None
                if value is None:
                    return
            self._post(value)
            with self._there:
                self._there.wait_for(lambda: self._closing, self.post_seconds)

    def _post(self, value: dict[str, Any]) -> None:
        body = json.dumps({"trainerStatus": value}).encode()
        try:
            headers = {"Content-Type": "application/json", **self._authorization()}
            request = urllib.request.Request(self.config.url, data=body, headers=headers, method="POST")
            context = ssl.create_default_context(cafile=self.config.ca_file) if self.config.ca_file else None
            opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=context))
            with opener.open(request, timeout=TIMEOUT_SECONDS):
                return
        # Wrong files, addresses and answers: none of them may end this thread.
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.failures += 1
            if self.failures == 1:
                log.warning("progress cannot be posted to %s, the run goes on: %s", self.config.url, error)

    def _authorization(self) -> dict[str, str]:
        if self.config.token_file is None:
            return {}
        if time.monotonic() - self._token_read > TOKEN_SECONDS:
            try:
                self._token, self._token_read = self.config.token_file.read_text("utf-8").strip(), time.monotonic()
            except OSError as error:
                log.warning("%s cannot be read: %s", self.config.token_file, error)
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An answer that sends us elsewhere is a failure: urllib would take the token there."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def status(report: StepReport, pace: Pace) -> dict[str, Any]:
    """The `trainerStatus` of a report."""
    values = {
        "stage": report.stage,
        "step": report.step,
        "total_steps": report.total_steps,
        "loss": report.losses["total"],
        "learning_rate": next(iter(report.rates.values()), 0.0),
        "tokens_per_second": pace.tokens_a_second,
        "samples_per_second": pace.samples_a_second,
        **({"mfu": pace.mfu} if pace.mfu is not None else {}),
    }
    return {
        "progressPercentage": int(100 * report.step / report.total_steps),
        "estimatedRemainingSeconds": int(pace.eta_seconds),
        "lastUpdatedTime": datetime.now(UTC).isoformat(),
        "metrics": [{"name": name, "value": str(value)} for name, value in values.items()],
    }
