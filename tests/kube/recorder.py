"""Events about objects, as controllers tell them; the same thing said again counts up."""

from __future__ import annotations

import hashlib

from tests.kube.objects import Object, copy, timestamp
from tests.kube.options import Options
from tests.kube.verbs import Api


def record(api: Api, about: Object, reason: str, message: str, component: str, *, warns: bool = False) -> None:
    meta = about["metadata"]
    namespace = meta.get("namespace", "default")
    digest = hashlib.sha256(f"{meta['uid']}/{reason}/{message}".encode()).hexdigest()[:16]
    name, events = f"{meta['name'][:230]}.{digest}", api.kinds["events"]
    known = api.store.get(events.id, (namespace, name))
    if known is not None:
        again = copy(known)
        again |= {"count": known.get("count", 1) + 1, "lastTimestamp": timestamp()}
        api.update(events, (namespace, name), again, Options(manager=component))
        return
    reference = {"apiVersion": about["apiVersion"], "kind": about["kind"], "name": meta["name"], "uid": meta["uid"]}
    body: Object = {
        "metadata": {"name": name},
        "involvedObject": {**reference, "namespace": namespace, "resourceVersion": meta["resourceVersion"]},
        "reason": reason,
        "message": message,
        "type": "Warning" if warns else "Normal",
        "count": 1,
        "firstTimestamp": timestamp(),
        "lastTimestamp": timestamp(),
        "source": {"component": component},
        "reportingComponent": component,
        "reportingInstance": "",
    }
    space = api.store.get(("", "namespaces"), ("", namespace))
    if space is not None and "deletionTimestamp" not in space["metadata"]:
        api.create(events, namespace, body, Options(manager=component))
