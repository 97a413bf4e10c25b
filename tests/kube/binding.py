"""A pod is given to a node, as the scheduler does it: once, and whether or not there is such a node."""

from __future__ import annotations

from tests.kube.errors import bad_request, conflict
from tests.kube.objects import Key, Object, dig, is_deleting, with_condition
from tests.kube.verbs import Api


def bind(api: Api, key: Key, body: Object, manager: str) -> None:
    kind, node = api.kinds["pods"], dig(body, "target", "name")
    if not node:
        raise bad_request("the binding has no target.name")
    pod = api.read(kind, key)
    held = dig(pod, "spec", "nodeName")
    if is_deleting(pod):
        raise conflict(kind, key[1], f"pod {key[1]} is being deleted, cannot be assigned to a host")
    if held:
        raise conflict(kind, key[1], f'pod {key[1]} is already assigned to node "{held}"')
    api.change(kind, key, lambda new: new["spec"].update(nodeName=node), manager, "binding")
    api.change(kind, key, lambda new: with_condition(new["status"], "PodScheduled", "True"), manager, "status")
