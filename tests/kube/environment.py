"""The variables of a container, from wherever its spec takes them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.kube import pod_facts
from tests.kube.objects import Object
from tests.kube.paths import expand
from tests.kube.verbs import Api
from tests.kube.volumes import NotReady, content_of

MARK = "ZIYA_TEST_POD"  # by which all processes of a pod are found again


def of_image(pod: Object, home: Path, more: dict[str, str]) -> dict[str, str]:
    """What would be in the image or come from the runtime."""
    meta, spec = pod["metadata"], pod["spec"]
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "HOSTNAME": spec.get("hostname") or meta["name"],
        **more,
        MARK: meta["uid"],
    }


def of_spec(api: Api, pod: Object, container: Object) -> dict[str, str]:
    variables: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        variables |= _all_of(api, pod, source)
    for variable in container.get("env") or []:
        value = _value(api, pod, container, variable, variables)
        if value is not None:
            variables[variable["name"]] = value
    return variables


def _all_of(api: Api, pod: Object, source: Object) -> dict[str, str]:
    found: dict[str, str] = {}
    for field, plural in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
        if ref := source.get(field):
            key = pod["metadata"]["namespace"], ref["name"]
            data = content_of(api, plural, key, bool(ref.get("optional")))
            found |= {f"{source.get('prefix', '')}{name}": text.decode() for name, text in data.items()}
    return found


def _value(api: Api, pod: Object, container: Object, variable: Object, known: dict[str, str]) -> str | None:
    source = variable.get("valueFrom")
    if not source:
        return expand(variable.get("value", ""), known)
    if ref := source.get("fieldRef"):
        return pod_facts.fact(pod, ref["fieldPath"])
    if ref := source.get("resourceFieldRef"):
        return pod_facts.amount(container, ref)
    for field, plural in (("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")):
        if ref := source.get(field):
            optional = bool(ref.get("optional"))
            data = content_of(api, plural, (pod["metadata"]["namespace"], ref["name"]), optional)
            if ref["key"] in data:
                return data[ref["key"]].decode()
            if not optional:
                raise NotReady(
                    "CreateContainerConfigError", f"couldn't find key {ref['key']} in {plural} {ref['name']}"
                )
    return None
