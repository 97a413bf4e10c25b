"""The eviction of a pod: its condition says that it was disturbed, then it is deleted with its grace."""

from __future__ import annotations

from tests.kube.objects import Key, Object, with_condition
from tests.kube.verbs import Api


def evict(api: Api, key: Key, reason: str = "EvictionByEvictionAPI", message: str = "Eviction API: evicting") -> None:
    kind = api.kinds["pods"]

    def disturb(pod: Object) -> None:
        with_condition(pod.setdefault("status", {}), "DisruptionTarget", "True", reason, message)

    api.change(kind, key, disturb, "kube-apiserver", "status")
    api.delete(kind, key)
