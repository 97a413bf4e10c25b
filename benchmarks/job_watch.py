"""A watch on the Jobs of a namespace, in a thread: when each was first told of, to the millisecond."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from kubernetes import client as kube

from services.operator.children import ATTEMPT, JOB, JOB_UID

_PATH = "/apis/batch/v1/namespaces/{}/jobs?watch=true&timeoutSeconds=3600"


class JobWatch:
    """`with` opens it, from now on; times are readings of time.monotonic."""

    def __init__(self, api: kube.ApiClient, namespace: str) -> None:
        self._api, self._path = api, _PATH.format(namespace)
        self._seen: dict[tuple[str, int], float] = {}
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._follow, name="job-watch", daemon=True)

    def __enter__(self) -> JobWatch:
        how: Any = self._api.configuration
        token = next(iter(how.api_key.values()))
        pool: Any = self._api.rest_client.pool_manager
        self._answer = pool.request(
            "GET", f"{how.host}{self._path}", headers={"Authorization": token}, preload_content=False
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._answer.close()

    def _follow(self) -> None:
        rest = b""
        for piece in self._answer.stream(2**16):
            now = time.monotonic()
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                self._take(json.loads(line), now)

    def _take(self, event: dict[str, Any], now: float) -> None:
        labels = event["object"]["metadata"].get("labels") or {}
        if event["type"] != "ADDED" or JOB not in labels:
            return
        with self._news:
            self._seen.setdefault((labels[JOB_UID], int(labels[ATTEMPT])), now)
            self._news.notify_all()

    def first(self, uid: str, attempt: int = 1, seconds: float = 120.0) -> float:
        """When the Job of that attempt came; waits for it."""
        with self._news:
            if not self._news.wait_for(lambda: (uid, attempt) in self._seen, seconds):
                raise TimeoutError(f"no Job of attempt {attempt} within {seconds:.0f} s")
            return self._seen[uid, attempt]

    def count(self, uid: str) -> int:
        """How many Jobs there have been of a TrainingJob."""
        with self._news:
            return sum(key[0] == uid for key in self._seen)
