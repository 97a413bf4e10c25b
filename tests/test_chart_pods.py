"""The chart's pods: each program gets settings that it has, is reached on ports that it listens on, and may little."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from services.gateway.settings import Settings as GatewaySettings
from services.llama.settings import Settings as LlamaSettings
from services.operator.queue import SETTINGS as CELERY
from services.operator.settings import OperatorSettings
from services.qformer.app import Settings as QFormerSettings
from services.vision.app import Settings as VisionSettings
from tests.helm import CASES, Object, PodTemplate, containers, matches, named, needs_helm, of_kind, pods, rendered
from ziya.settings import ProcessSettings, metrics_port

pytestmark = [needs_helm, pytest.mark.parametrize("case", CASES)]

PROGRAMS: dict[str, type[ProcessSettings]] = {
    "services.gateway.app": GatewaySettings,
    "services.vision.app": VisionSettings,
    "services.qformer.app": QFormerSettings,
    "services.operator.app": OperatorSettings,
    "services.operator.worker": OperatorSettings,
    "tritonserver": LlamaSettings,
}
SECRETS = {"ZIYA_REDIS_URL": "redis://:password@there", "ZIYA_OPERATOR_BROKER_URL": "redis://:password@there"}


def program(container: Object) -> str:
    """The module that a container runs, or the binary."""
    command = container["command"]
    return str(command[2] if command[:2] == ["python", "-m"] else command[0])


def settings(container: Object, monkeypatch: pytest.MonkeyPatch) -> ProcessSettings:
    """As the program would read them."""
    with monkeypatch.context() as patch:
        for one in container["env"]:
            if one["name"].startswith("ZIYA_"):
                value = one["value"] if "value" in one else SECRETS.get(one["name"], "secret")
                patch.setenv(one["name"], value)
        return PROGRAMS[program(container)].load()


def ours(case: str) -> Iterator[tuple[PodTemplate, Object]]:
    """Containers that run a program of ours with settings."""
    for pod in pods(rendered(case)):
        for container in containers(pod):
            if program(container) in PROGRAMS:
                yield pod, container


def default(kind: type[BaseModel], name: str) -> int:
    return int(kind.model_fields[name].default)


def listens(container: Object) -> set[int]:
    """The ports of a program, by its own defaults or by its arguments."""
    name = program(container)
    if name in ("services.vision.app", "services.qformer.app"):
        port = default(PROGRAMS[name], f"{PROGRAMS[name].program}_port")
        return {port, metrics_port(port, None)}
    if name == "services.gateway.app":
        grpc = default(GatewaySettings, "gateway_grpc_port")
        return {default(GatewaySettings, "gateway_http_port"), grpc, metrics_port(grpc, None)}
    if name == "services.operator.app":
        progress = default(OperatorSettings, "operator_progress_port")
        return {progress, metrics_port(progress, None)}
    arguments = " ".join(container.get("args", []))
    return {int(port) for port in re.findall(r"-port[= ](\d+)", arguments) + re.findall(r"--port (\d+)", arguments)}


def test_every_setting_is_one_that_the_program_has(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for _, container in ours(case):
        kind = PROGRAMS[program(container)]
        fields = {f"ZIYA_{field.upper()}" for field in kind.model_fields}
        assert {one["name"] for one in container["env"] if one["name"].startswith("ZIYA_")} <= fields
        settings(container, monkeypatch)
    for pod in pods(rendered(case)):
        for container in containers(pod):
            if program(container) not in PROGRAMS:
                assert not [one for one in container.get("env", []) if one["name"].startswith("ZIYA_")]


def test_no_variable_comes_twice(case: str) -> None:
    for pod in pods(rendered(case)):
        for container in containers(pod):
            names = [one["name"] for one in container.get("env", [])]
            assert len(names) == len(set(names))


def test_kubernetes_adds_no_variables_of_its_own(case: str) -> None:
    """The Service of a release called ziya would become ZIYA_GATEWAY_PORT, a name at which the gateway stops."""
    for pod in pods(rendered(case)):
        assert pod.spec["enableServiceLinks"] is False


def test_programs_listen_on_every_address(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for _, container in ours(case):
        if program(container) != "tritonserver":  # it does by itself
            assert settings(container, monkeypatch).host == "0.0.0.0"


def test_what_stages_must_agree_on_is_the_same(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [settings(container, monkeypatch) for _, container in ours(case) if "operator" not in program(container)]
    assert len({(one.redis_url.rpartition("@")[2], one.request_timeout, one.tls_dir) for one in stages}) == 1
    if "kserve" not in case and case != "knative":
        assert len({one.checkpoint for one in stages}) == 1


def test_every_container_port_is_one_that_the_program_listens_on(case: str) -> None:
    for pod in pods(rendered(case)):
        for container in pod.spec["containers"]:
            for port in container.get("ports", []):
                assert port["containerPort"] in listens(container)


def test_every_service_leads_to_a_port_that_is_listened_on(case: str) -> None:
    found = rendered(case)
    for service in of_kind(found, "Service"):
        behind = [pod for pod in pods(found) if matches({"matchLabels": service["spec"]["selector"]}, pod.labels)]
        assert behind, f"nothing is behind {service['metadata']['name']}"
        for pod in behind:
            [container] = pod.spec["containers"]
            named_ports = {one["name"]: one["containerPort"] for one in container["ports"]}
            for port in service["spec"]["ports"]:
                target = port["targetPort"]
                reached = target if isinstance(target, int) else named_ports[target]
                assert reached in listens(container)
                # Behind a headless Service a client talks to the pod itself: nothing translates the port.
                assert port["port"] == reached


def test_every_peer_of_the_gateway_is_a_service_of_the_chart(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rendered(case)
    [gateway] = [container for _, container in ours(case) if program(container) == "services.gateway.app"]
    read = settings(gateway, monkeypatch)
    assert isinstance(read, GatewaySettings)
    targets = [read.gateway_vision, read.gateway_qformer]
    if case == "knative":
        assert read.gateway_triton == "trial-llama-predictor.models.svc.cluster.local:80"
    else:
        targets.append(read.gateway_triton)
    for target in targets:
        name, port = target.removeprefix("dns:///").split(":")
        [service] = [one for one in of_kind(found, "Service") if one["metadata"]["name"] == name]
        assert service["spec"]["clusterIP"] == "None"
        assert "grpc" in [one["name"] for one in service["spec"]["ports"] if one["port"] == int(port)]


def test_selectors_take_their_own_pods_and_no_others(case: str) -> None:
    found = rendered(case)
    own = {pod.name.removesuffix("-predictor"): pod for pod in pods(found)}
    for one in of_kind(found, "Deployment", "StatefulSet", "PodDisruptionBudget"):
        selected = {name for name, pod in own.items() if matches(one["spec"]["selector"], pod.labels)}
        assert selected == {one["metadata"]["name"]}
    for pod in own.values():
        for spread in pod.spec.get("topologySpreadConstraints", []):
            assert matches(spread["labelSelector"], pod.labels)


def test_pods_are_restricted(case: str) -> None:
    """Kubernetes' Pod Security Standard of that name, and a root file system that cannot be written."""
    volumes = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
    for pod in pods(rendered(case)):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod.spec)
        security = pod.spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for volume in pod.spec.get("volumes", []):
            assert set(volume) - {"name"} <= volumes
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_every_mount_has_its_volume(case: str) -> None:
    for pod in pods(rendered(case)):
        there = {volume["name"] for volume in pod.spec.get("volumes", [])}
        mounted = {mount["name"] for container in containers(pod) for mount in container.get("volumeMounts", [])}
        assert mounted == there


def test_only_the_operator_has_a_token(case: str) -> None:
    found = rendered(case)
    for pod in pods(found):
        allowed = pod.labels["app.kubernetes.io/component"] in ("operator", "operator-worker", "operator-data")
        assert pod.spec["automountServiceAccountToken"] is allowed
    for account in of_kind(found, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    workloads = [pod for pod in pods(found) if pod.labels["app.kubernetes.io/component"] != "test"]
    names = [pod.spec["serviceAccountName"] for pod in workloads]
    assert len(names) == len(set(names))
    made = {one["metadata"]["name"] for one in of_kind(found, "ServiceAccount")}
    assert set(names) | ({"trial-trainer"} if "trial-operator" in names else set()) == made


def test_every_program_that_serves_has_three_probes(case: str) -> None:
    for _, container in ours(case):
        probes = {"startupProbe", "livenessProbe", "readinessProbe"}
        if program(container) == "services.operator.worker":  # nobody sends it anything
            probes.remove("readinessProbe")
        assert probes <= set(container)
        liveness = container["livenessProbe"]
        assert liveness.get("httpGet", {}).get("path") in (None, "/healthz", "/v2/health/live"), "it asks others"


def test_a_rollout_waits_as_long_as_weights_may_take_to_load(case: str) -> None:
    found = rendered(case)
    starts = [
        probe["periodSeconds"] * probe["failureThreshold"] for _, one in ours(case) if (probe := one["startupProbe"])
    ]
    for one in of_kind(found, "Deployment"):
        if one["metadata"]["name"] == "trial-gateway":  # not ready before the others are
            assert one["spec"]["progressDeadlineSeconds"] > max(starts)


def test_a_stopping_pod_has_time_to_drain(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for pod, container in ours(case):
        grace = pod.spec["terminationGracePeriodSeconds"]
        if "operator" in program(container):
            assert grace > CELERY["worker_soft_shutdown_timeout"]
            continue
        before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        # The Q-Former drains calls, and after them what it took from the bus.
        drains = 2 if program(container) == "services.qformer.app" else 1
        assert grace > before + drains * settings(container, monkeypatch).drain_seconds


def test_images_have_a_tag_and_resources_a_bound(case: str) -> None:
    for pod in pods(rendered(case)):
        for container in containers(pod):
            assert re.search(r":[\w.-]+$", container["image"])
            assert not container["image"].endswith(":latest")
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]


def test_no_secret_is_in_plain_sight(case: str) -> None:
    """Keys and passwords come by reference; ConfigMaps hold scripts, rules for users, pictures and dashboards."""
    found = rendered(case)
    assert not of_kind(found, "Secret")
    for one in of_kind(found, "ConfigMap"):
        assert {Path(name).suffix for name in [*one.get("data", {}), *one.get("binaryData", {})]} <= {
            ".py",
            ".webp",
            ".json",
            ".sh",
            ".acl",
        }
    for pod in pods(found):
        for container in containers(pod):
            for one in container.get("env", []):
                if re.search("KEY|PASSWORD|TOKEN$|SECRET", one["name"]) and not re.search("SALT|_FILE$", one["name"]):
                    assert "secretKeyRef" in one["valueFrom"]
                assert not re.search(":[^/@]*@", one.get("value", ""))


def test_a_stage_has_one_scaler_or_a_number(case: str) -> None:
    found = rendered(case)
    scalers = of_kind(found, "HorizontalPodAutoscaler", "ScaledObject")
    kinds = {one["kind"] for one in scalers}
    assert len(kinds) <= 1
    targets = [one["spec"]["scaleTargetRef"]["name"] for one in scalers]
    assert len(targets) == len(set(targets))
    for stage in ("gateway", "vision", "qformer", "llama", "operator-worker", "operator-data"):
        for one in of_kind(found, "Deployment"):
            if one["metadata"]["name"] == f"trial-{stage}":
                assert ("replicas" in one["spec"]) != (f"trial-{stage}" in targets)


def test_the_worker_looks_for_the_queues_that_there_are(case: str) -> None:
    queues: set[Any] = {queue.name for queue in CELERY["task_queues"]}
    for _, container in ours(case):
        if program(container) == "services.operator.worker":
            assert set(container["command"][3:]) <= queues


def test_the_trainers_account_is_the_one_that_the_operator_names(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rendered(case)
    for _, container in ours(case):
        if "operator" in program(container):
            read = settings(container, monkeypatch)
            assert isinstance(read, OperatorSettings)
            assert named(found, "ServiceAccount", "trainer")["metadata"]["name"] == read.operator_trainer_account
            assert read.operator_progress_url == "http://trial-operator.models.svc:9003"
