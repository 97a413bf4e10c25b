"""kopf does the watching: every event of a TrainingJob, or of its Jobs and pods, becomes a hint. Nothing is decided.

Only raw events are used. kopf's other handlers would keep their own state and finalizers in the objects, and retry by
rules of their own, all of which Celery and the status already do.
"""

from __future__ import annotations

import logging
from typing import Any

import kopf

from services.operator.api import connect
from services.operator.children import JOB_UID
from services.operator.hints import Hints
from services.operator.metrics import OperatorMetrics
from services.operator.resource import GROUP, PLURAL, VERSION, Key


class Watcher:
    """`known` has every TrainingJob that was seen, by uid: a pod's labels say no more than that."""

    def __init__(self, hints: Hints, metrics: OperatorMetrics, kubeconfig: str) -> None:
        self.known: dict[str, Key] = {}
        self._hints, self._metrics, self._kubeconfig = hints, metrics, kubeconfig

    def registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)(self._training_job)
        kopf.on.event("batch", "v1", "jobs", labels={JOB_UID: kopf.PRESENT}, registry=registry)(self._job)
        kopf.on.event("", "v1", "pods", labels={JOB_UID: kopf.PRESENT}, registry=registry)(self._pod)
        kopf.on.login(registry=registry, errors=kopf.ErrorsMode.PERMANENT)(self._login)
        return registry

    async def _training_job(self, meta: kopf.Meta, type: str | None, **_: Any) -> None:
        self._metrics.events.labels("TrainingJob").inc()
        key = Key(str(meta.namespace), str(meta.name), str(meta.uid))
        if type == "DELETED":
            self.known.pop(key.uid, None)
        else:
            self.known[key.uid] = key
            self._hints.mark(key, deleting="deletionTimestamp" in meta)

    async def _job(self, labels: kopf.Labels, **_: Any) -> None:
        self._child("Job", labels)

    async def _pod(self, labels: kopf.Labels, **_: Any) -> None:
        self._child("Pod", labels)

    def _child(self, kind: str, labels: kopf.Labels) -> None:
        self._metrics.events.labels(kind).inc()
        # One that is not known is either gone or will be seen in a moment, with an event of its own.
        if key := self.known.get(labels[JOB_UID]):
            self._hints.mark(key)

    def _login(self, settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo | None:
        if not self._kubeconfig:
            return kopf.login_with_service_account(settings=settings)
        with connect(self._kubeconfig) as client:
            how = client.configuration
            token = next(iter(how.api_key.values()), "").removeprefix("Bearer ").removeprefix("bearer ")
            return kopf.ConnectionInfo(
                server=how.host,
                ca_path=how.ssl_ca_cert,
                insecure=not how.verify_ssl,
                certificate_path=how.cert_file,
                private_key_path=how.key_file,
                token=token or None,
            )


def kopf_settings() -> kopf.OperatorSettings:
    # Of each event it says that it was handled, with all of these settings.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    # A watch that is silently dead would never be noticed without these (kopf issue 585).
    settings.watching.server_timeout = 240
    settings.watching.client_timeout = 270
    settings.watching.connect_timeout = 5
    settings.networking.request_timeout = 15
    return settings
