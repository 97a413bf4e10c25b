"""The real programs take what the chart gives them: arguments of Redis and Triton, modules, names of gRPC services."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from services.gateway.chat_service import FULL_NAME as CHAT
from services.llama import triton
from tests.helm import CASES, Object, containers, named, needs_helm, pods, rendered

pytestmark = needs_helm


def everything() -> Iterator[Object]:
    for case in CASES:
        for pod in pods(rendered(case)):
            yield from containers(pod)


def test_triton_knows_every_argument(tmp_path: Path) -> None:
    argv, env = triton.command(triton.TritonOptions(tmp_path), {})
    done = subprocess.run([argv[0], "--help"], env=env, capture_output=True, text=True, timeout=60, check=False)
    known = set((done.stdout + done.stderr).split())
    given = {one.split("=")[0] for container in everything() for one in container.get("args", []) if "=" in one}
    assert len(given) > 5
    assert given <= known


def test_triton_gets_the_same_flags_for_tls_as_on_one_machine(tmp_path: Path) -> None:
    argv, _ = triton.command(
        triton.TritonOptions(tmp_path, tls_dir=Path("/etc/ziya/tls"), http_secret="$(POD_UID)"), {}
    )
    [container] = named(rendered("tls"), "Deployment", "llama")["spec"]["template"]["spec"]["containers"]
    chosen = [
        [one for one in given if "ssl" in one or "-cert=" in one or "-key=" in one or "restricted" in one]
        for given in (argv, container["args"])
    ]
    assert len(chosen[0]) == 5
    assert sorted(chosen[0]) == sorted(chosen[1])


def test_every_module_that_a_container_runs_is_there() -> None:
    probes = ("startupProbe", "livenessProbe")
    commands = [container["command"] for container in everything()]
    commands += [
        container[probe]["exec"]["command"]
        for container in everything()
        for probe in probes
        if exec_of(container, probe)
    ]
    modules = {command[2] for command in commands if command[:2] == ["python", "-m"]}
    assert len(modules) >= 6
    for module in modules:
        assert find_spec(module) is not None, module


def exec_of(container: Object, probe: str) -> bool:
    return "exec" in container.get(probe, {})


def test_probes_ask_for_services_that_are_served() -> None:
    asked = {container.get("readinessProbe", {}).get("grpc", {}).get("service") for container in everything()}
    assert asked - {None} == {CHAT}
