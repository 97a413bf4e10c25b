"""A watch on the Jobs of a namespace, in a thread: when each Job of a TrainingJob was first told of."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple

from kubernetes import client as kube
from urllib3.exceptions import HTTPError

from services.operator.children import ATTEMPT, JOB_UID, STAGE

_PATH = "/apis/batch/v1/namespaces/{}/jobs?watch=true&timeoutSeconds=3600&labelSelector=" + JOB_UID


class Attempt(NamedTuple):
    """Whose Job it is."""

    uid: str
    stage: str
    number: int


class JobWatch:
    """`with` opens it. When the API hangs up it is opened anew, and then tells of what came meanwhile.

    Times are readings of time.monotonic."""

    def __init__(self, api: kube.ApiClient, namespace: str) -> None:
        self._api, self._path = api, _PATH.format(namespace)
        self._seen: dict[Attempt, float] = {}
        self._news = threading.Condition()
        self._ended = threading.Event()
        self._answer: Any = None
        self._thread = threading.Thread(target=self._follow, name="job-watch", daemon=True)

    def __enter__(self) -> JobWatch:
        self._answer = self._open()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with suppress(HTTPError, OSError, ValueError):
            self._answer.shutdown()  # to close it would wait for the thread that reads
        self._thread.join()

    def _open(self) -> Any:
        how: Any = self._api.configuration
        pool: Any = self._api.rest_client.pool_manager
        headers = {"Authorization": next(iter(how.api_key.values()))}
        return pool.request("GET", f"{how.host}{self._path}", headers=headers, preload_content=False, retries=False)

    def _follow(self) -> None:
        while not self._ended.is_set():
            with suppress(HTTPError, OSError):
                self._read()
            while not self._ended.wait(0.02):
                with suppress(HTTPError, OSError):
                    self._answer = self._open()
                    break
        self._answer.close()

    def _read(self) -> None:
        rest = b""
        for piece in self._answer.stream(2**16):
            now = time.monotonic()
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                self._take(json.loads(line), now)

    def _take(self, event: dict[str, Any], now: float) -> None:
        if event["type"] != "ADDED":
            return
        labels = event["object"]["metadata"]["labels"]
        with self._news:
            self._seen.setdefault(Attempt(labels[JOB_UID], labels[STAGE], int(labels[ATTEMPT])), now)
            self._news.notify_all()

    def first(self, uid: str, stage: str, number: int = 1, seconds: float = 120.0) -> float:
        """When the Job of that attempt came; waits for it."""
        attempt = Attempt(uid, stage, number)
        with self._news:
            if not self._news.wait_for(lambda: attempt in self._seen, seconds):
                raise TimeoutError(f"{attempt} had no Job within {seconds:.0f} s")
            return self._seen[attempt]

    def count(self, uid: str) -> int:
        """How many Jobs a TrainingJob has had."""
        with self._news:
            return sum(attempt.uid == uid for attempt in self._seen)
