"""The operator for its benchmarks: both programs as processes, a real Redis, the tests' own API server, real settings.

Programs, accounts and rights are those of the tests (tests/operator_system.py); the times are those of production.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import machine
from tests.operator_system import OperatorSystem

RESYNC_SECONDS = 30.0
SETTINGS = {"ZIYA_OPERATOR_RESYNC_SECONDS": f"{RESYNC_SECONDS:.0f}", "ZIYA_OPERATOR_PROGRESS_SECONDS": "10"}
DOUBLE = """\
The API server is the tests' own double (tests/kube): real HTTPS, watches, validation and the Job controller, but Python
in the process of this benchmark, on the same machine and cores. There is no network between, and no etcd that writes to
a disk; but to admit one write of a TrainingJob, with the rules of its CRD, takes it 10 to 20 ms of a core, and it does
one thing at a time, where a real API server takes about a millisecond on several cores. So a single request is answered
about as soon as on a real cluster, many at once later. Redis and the operator's two programs are real processes."""
PACKAGES = ("celery", "kombu", "kopf", "kubernetes", "aiohttp")


@contextmanager
def production(controllers: Iterable[str], **settings: str) -> Iterator[OperatorSystem]:
    """Running until the end of the block. `controllers`: which of the cluster's own (tests/kube/cluster.py) work."""
    with (
        tempfile.TemporaryDirectory(prefix="ziya-") as folder,
        OperatorSystem(Path(folder) / "operator", **{**SETTINGS, **settings}) as system,
    ):
        system.cluster.set_controllers(*controllers)
        yield system


def describe() -> str:
    """Machine, versions, and what the API server is: above every table."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{machine.describe()}\n{versions}\n\n{DOUBLE}"


def stage(name: str = "align") -> dict[str, Any]:
    """One that nobody runs."""
    return {"name": name, "type": "align", "data": [{"data": "data", "task": "caption", "language": "en"}]}


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
