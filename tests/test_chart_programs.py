"""The real programs take what the chart gives them: arguments of Redis and Triton, modules, names of gRPC services."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import redis

from cli.programs import find_redis
from services.gateway.chat_service import FULL_NAME as CHAT
from services.llama import triton
from services.qformer.app import FULL_NAME as QFORMER
from services.vision.app import FULL_NAME as VISION
from tests.helm import CASES, Object, containers, needs_helm, pods, rendered

pytestmark = needs_helm


def everything() -> Iterator[Object]:
    for case in CASES:
        for pod in pods(rendered(case)):
            yield from containers(pod)


def test_redis_starts_with_the_charts_arguments(free_port: int, tmp_path: Path) -> None:
    container = next(one for one in everything() if one["command"] == ["redis-server"])
    own = {"6379": str(free_port), "/data": str(tmp_path)}
    argv = [find_redis(), *(own.get(word, word) for word in container["args"])]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            assert any("eady to accept connections" in line for line in server.stdout)
            with redis.Redis(port=free_port) as client:
                settings = client.config_get("*")
                assert settings["maxmemory"] == str(256 << 20)
                assert (settings["maxmemory-policy"], settings["save"]) == ("volatile-lru", "")
        finally:
            server.terminate()


def test_triton_knows_every_argument(tmp_path: Path) -> None:
    argv, env = triton.command(triton.TritonOptions(tmp_path), {})
    done = subprocess.run([argv[0], "--help"], env=env, capture_output=True, text=True, timeout=60, check=False)
    known = set((done.stdout + done.stderr).split())
    given = {one.split("=")[0] for container in everything() for one in container.get("args", []) if "=" in one}
    assert len(given) > 5
    assert given <= known


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
    assert asked - {None} == {VISION, QFORMER, CHAT}
