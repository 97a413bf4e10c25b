"""What a pod may know of itself: `fieldRef` and `resourceFieldRef`."""

from __future__ import annotations

import math
import re

from tests.kube.objects import Object, dig

_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "m": 10**-3, "": 1}
ADDRESS = "127.0.0.1"


def fact(pod: Object, path: str) -> str:
    """The value of a field path such as `metadata.name` or `metadata.labels['x']`."""
    if found := re.match(r"^metadata\.(labels|annotations)\['(.+)'\]$", path):
        return str(dig(pod, "metadata", found[1], found[2], default=""))
    if path in ("metadata.labels", "metadata.annotations"):
        values = dig(pod, *path.split("."), default={})
        return "\n".join(f'{key}="{value}"' for key, value in sorted(values.items()))
    if path in ("status.podIP", "status.hostIP", "status.podIPs", "status.hostIPs"):
        return ADDRESS
    return str(dig(pod, *path.split("."), default=""))


def amount(container: Object, ref: Object) -> str:
    """A limit or request of the container, in the divisor that is asked for, rounded up."""
    kind, _, name = ref["resource"].partition(".")
    given = dig(container, "resources", kind, name) or dig(container, "resources", "limits", name, default="0")
    return str(math.ceil(_number(str(given)) / (_number(str(ref.get("divisor") or "1")) or 1)))


def _number(quantity: str) -> float:
    found = re.match(r"^([\d.]+)([A-Za-z]*)$", quantity)
    return float(found[1]) * _UNITS[found[2]] if found else 0.0
