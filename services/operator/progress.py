"""The progress endpoint, to which the first process of an attempt posts how far it is.

A pod shows the token of its account that was made for this endpoint alone; the API server says whose it is, and which
pod holds it (TokenReview), and the pod's labels say whether it is of that attempt. The newest post of an attempt waits
here and goes into the status at most every few seconds, through Celery.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from aiohttp import web
from celery import Celery
from kombu.exceptions import OperationalError

from services.operator.api import ApiError
from services.operator.children import ATTEMPT, JOB_UID, STAGE
from services.operator.cluster import Cluster
from services.operator.metrics import OperatorMetrics
from services.operator.posts import progress_of
from services.operator.queue import FLUSH_PROGRESS
from services.operator.resource import Key
from services.operator.status import stamp

PATH = "/v1/progress/{namespace}/{name}/{uid}/{stage}/{attempt}"
POD_NAME, POD_UID = "authentication.kubernetes.io/pod-name", "authentication.kubernetes.io/pod-uid"
TRUST_SECONDS, POSTS_A_SECOND, MAX_BODY, MAX_TRUSTED = 300.0, 5.0, 64 << 10, 10_000
log = logging.getLogger(__name__)


class Attempt(NamedTuple):
    """Whom a post is about."""

    key: Key
    stage: str
    number: int


@dataclass
class ProgressEndpoint:
    """An aiohttp application by `application`; `run` flushes."""

    cluster: Cluster
    app: Celery
    metrics: OperatorMetrics
    audience: str
    flush_seconds: float
    _newest: dict[Attempt, dict[str, Any]] = field(default_factory=dict)
    _flushed: dict[Key, float] = field(default_factory=dict)
    _posted: dict[Attempt, float] = field(default_factory=dict)
    _trusted: dict[tuple[str, Attempt], float] = field(default_factory=dict)
    _reviewing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def application(self) -> web.Application:
        application = web.Application(client_max_size=MAX_BODY)
        application.router.add_post(PATH, self._post)
        application.router.add_get("/healthz", self._healthy)
        return application

    async def run(self) -> None:
        """Publishes what is due, until cancelled."""
        while True:
            await asyncio.sleep(min(max(self.flush_seconds / 4, 0.05), 1.0))
            now = time.monotonic()
            for attempt in [one for one in self._newest if self._is_due(one.key, now)]:
                told = self._newest.pop(attempt)
                self._flushed[attempt.key] = now
                try:
                    arguments = [attempt.key, attempt.stage, attempt.number, told]
                    await asyncio.to_thread(self.app.send_task, FLUSH_PROGRESS, arguments, retry=False)
                except OperationalError:
                    self._newest.setdefault(attempt, told)
            self._forget(now)

    def _is_due(self, key: Key, now: float) -> bool:
        return now - self._flushed.get(key, float("-inf")) >= self.flush_seconds

    def _forget(self, now: float) -> None:
        self._trusted = {key: end for key, end in self._trusted.items() if end > now}
        self._posted = {key: at for key, at in self._posted.items() if now - at < TRUST_SECONDS}
        self._flushed = {key: at for key, at in self._flushed.items() if now - at < TRUST_SECONDS}

    async def _healthy(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _post(self, request: web.Request) -> web.Response:
        try:
            await self._take(request)
        except web.HTTPException as refusal:
            self.metrics.progress.labels(str(refusal.status)).inc()
            raise
        self.metrics.progress.labels("204").inc()
        return web.Response(status=204)

    async def _take(self, request: web.Request) -> None:
        """Raises an HTTPException where the post is not taken."""
        attempt, now = _attempt(request), time.monotonic()
        if now - self._posted.get(attempt, float("-inf")) < 1 / POSTS_A_SECOND:
            raise web.HTTPTooManyRequests(text="more than a few posts a second\n", headers={"Retry-After": "1"})
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind != "Bearer" or not token:
            raise web.HTTPUnauthorized(text="no bearer token\n")
        await self._check(token.strip(), attempt)
        try:
            told = progress_of(json.loads(await request.read()))
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        self._posted[attempt] = now
        self._newest[attempt] = {**told, "updatedAt": stamp(datetime.now(UTC))}

    async def _check(self, token: str, attempt: Attempt) -> None:
        """Remembered for some minutes: to review a token costs two requests."""
        remembered = (hashlib.sha256(token.encode()).hexdigest(), attempt)
        if self._trusted.get(remembered, 0.0) > time.monotonic():
            return
        try:
            async with self._reviewing:
                await asyncio.to_thread(self._review, token, attempt)
        except ApiError as error:
            log.warning("a token cannot be reviewed: %s", error)
            said = "the token cannot be reviewed now\n"
            raise web.HTTPServiceUnavailable(text=said, headers={"Retry-After": "5"}) from error
        if len(self._trusted) < MAX_TRUSTED:
            self._trusted[remembered] = time.monotonic() + TRUST_SECONDS

    def _review(self, token: str, attempt: Attempt) -> None:
        """Raises an HTTPException for anybody but a pod of that attempt, and ApiError."""
        review = self.cluster.review_token(token, self.audience)
        if not review.get("authenticated") or self.audience not in (review.get("audiences") or []):
            raise web.HTTPUnauthorized(text="the token is not valid here\n")
        extra = review["user"].get("extra") or {}
        name, uid = (next(iter(extra.get(what) or []), "") for what in (POD_NAME, POD_UID))
        namespace = attempt.key.namespace
        if not name or not review["user"]["username"].startswith(f"system:serviceaccount:{namespace}:"):
            raise web.HTTPForbidden(text="the token is not a pod's of that namespace\n")
        pod = self.cluster.pod(namespace, name)
        labels = pod["metadata"].get("labels", {}) if pod is not None and pod["metadata"]["uid"] == uid else {}
        claimed = (labels.get(JOB_UID), labels.get(STAGE), labels.get(ATTEMPT))
        if claimed != (attempt.key.uid, attempt.stage, str(attempt.number)):
            raise web.HTTPForbidden(text=f"pod {name} is not of that attempt\n")


def _attempt(request: web.Request) -> Attempt:
    path = request.match_info
    if not path["attempt"].isdecimal():
        raise web.HTTPBadRequest(text="the attempt in the path is not a number\n")
    return Attempt(Key(path["namespace"], path["name"], path["uid"]), path["stage"], int(path["attempt"]))
