"""Who may talk to whom: what the NetworkPolicies permit is computed, pod by pod and port by port, and compared.

A network plug-in may take an ipBlock for the addresses of pods, too; so it is taken here, and pods have addresses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest

from tests.helm import CASES, NAMESPACE, Object, matches, needs_helm, objects, of_kind, pods, text
from tests.test_chart_pods import listens, program

pytestmark = needs_helm

KUBERNETES, STORE, REDIS, COLLECTOR = "192.0.2.1", "192.0.2.20", "192.0.2.30", "192.0.2.40"
NARROW = {
    "networkPolicy__apiServer": {"cidr": f"{KUBERNETES}/32", "ports": [6443]},
    "networkPolicy__objectStore": {"cidr": f"{STORE}/32", "port": 9000},
    "redis__egress": {"cidr": f"{REDIS}/32", "port": 6380},
}


class Place(NamedTuple):
    """A pod, or an address outside; ports are those that somebody listens on."""

    name: str
    namespace: str
    labels: Mapping[str, str]
    address: str
    ports: frozenset[int]


OTHERS = [
    Place("dns", "kube-system", {"k8s-app": "kube-dns"}, "10.244.9.1", frozenset({53})),
    Place("prometheus", "monitoring", {"app": "prometheus"}, "10.244.9.2", frozenset({9090})),
    Place("collector", "tracing", {"app": "otel"}, "10.244.9.8", frozenset({4317, 4318})),
    Place("client", "apps", {"app": "shop"}, "10.244.9.3", frozenset({80, 443, 8080})),
    Place("trainer", "training", {"ziya.dev/job-uid": "1"}, "10.244.9.4", frozenset({29500})),
    Place("trainer elsewhere", "lab", {"ziya.dev/job-uid": "2"}, "10.244.9.5", frozenset({29500})),
    Place("neighbour", NAMESPACE, {"app": "shop"}, "10.244.9.6", frozenset({80, 443, 6379})),
    Place("knative", "knative-serving", {"app": "activator"}, "10.244.9.7", frozenset({8012, 443})),
    Place("kubernetes", "", {}, KUBERNETES, frozenset({6443, 22})),
    Place("store", "", {}, STORE, frozenset({9000, 22})),
    Place("redis elsewhere", "", {}, REDIS, frozenset({6380, 22})),
    Place("collector elsewhere", "", {}, COLLECTOR, frozenset({4318, 22})),
    Place("internet", "", {}, "93.184.215.14", frozenset({22, 80, 443})),
    Place("private host", "", {}, "10.0.0.7", frozenset({22, 80, 443})),
    Place("cloud metadata", "", {}, "169.254.169.254", frozenset({80})),
]


def places(found: list[Object]) -> Iterator[Place]:
    """Our own pods, by the component's name, and the others."""
    for number, pod in enumerate(pods(found)):
        [container] = pod.spec["containers"]
        ports = frozenset(listens(container)) if "ports" in container else frozenset()
        if program(container) == "tritonserver":
            ports = frozenset({8000, 8001, 8002})
        yield Place(pod.labels["app.kubernetes.io/component"], NAMESPACE, pod.labels, f"10.244.1.{number}", ports)
    yield from OTHERS


def permitted(found: list[Object]) -> set[tuple[str, str, int]]:
    """Every way on which one of ours is at either end."""
    everybody, policies = list(places(found)), of_kind(found, "NetworkPolicy")
    own = {place.name for place in everybody} - {place.name for place in OTHERS}
    return {
        (source.name, target.name, port)
        for source in everybody
        for target in everybody
        for port in target.ports
        if source is not target
        and own & {source.name, target.name}
        and allows(policies, source, "Egress", target, port)
        and allows(policies, target, "Ingress", source, port)
    }


def allows(policies: list[Object], place: Place, direction: str, peer: Place, port: int) -> bool:
    """Where no policy selects a pod, all is allowed; else what one of them names."""
    specs = [one["spec"] for one in policies if place.namespace == one["metadata"]["namespace"]]
    chosen = [one for one in specs if direction in one["policyTypes"] and matches(one["podSelector"], place.labels)]
    rules = [rule for one in chosen for rule in one.get(direction.lower(), [])]
    side = "to" if direction == "Egress" else "from"
    return not chosen or any(named(rule, side, peer) and opens(rule, port) for rule in rules)


def opens(rule: Object, port: int) -> bool:
    return "ports" not in rule or port in [one["port"] for one in rule["ports"]]


def named(rule: Object, side: str, peer: Place) -> bool:
    return side not in rule or any(is_peer(one, peer) for one in rule[side])


def is_peer(rule: Object, peer: Place) -> bool:
    if block := rule.get("ipBlock"):
        address = ipaddress.ip_address(peer.address)
        outside = [ipaddress.ip_network(one) for one in block.get("except", [])]
        return address in ipaddress.ip_network(block["cidr"]) and not any(address in one for one in outside)
    if not peer.namespace:
        return False
    if (spaces := rule.get("namespaceSelector")) is not None:
        there = matches(spaces, {"kubernetes.io/metadata.name": peer.namespace, "team": peer.namespace})
    else:
        there = peer.namespace == NAMESPACE
    return there and matches(rule.get("podSelector", {}), peer.labels)


# The arrows of docs/architecture.md, and what a cluster adds: names, metrics, its API.
STAGES = ("gateway", "vision", "qformer", "llama")
ARROWS = {
    *(("gateway", *to) for to in (("vision", 9001), ("qformer", 9002), ("llama", 8001), ("internet", 443))),
    *((stage, "redis", 6379) for stage in STAGES),
    *((half, "redis", 6379) for half in ("operator", "operator-worker")),
    *((half, "kubernetes", 6443) for half in ("operator", "operator-worker")),
    ("operator-worker", "prometheus", 9090),
    *((trainer, "operator", 9003) for trainer in ("trainer", "trainer elsewhere")),
    *((own, "dns", 53) for own in (*STAGES, "operator", "operator-worker", "test")),
    *(
        ("prometheus", *to)
        for to in (("gateway", 9100), ("vision", 9101), ("qformer", 9102), ("llama", 8002), ("operator", 9103))
    ),
    ("test", "gateway", 8080),
}
EVERYBODY = {(other.name, "gateway", port) for other in OTHERS for port in (8080, 9000)}


def reached(case: str, **more: object) -> set[tuple[str, str, int]]:
    return permitted(objects(text(CASES[case], **NARROW, **more)))


def without(arrows: set[tuple[str, str, int]], *names: str) -> set[tuple[str, str, int]]:
    return {arrow for arrow in arrows if not set(names) & set(arrow)}


def test_exactly_the_arrows_of_the_design() -> None:
    assert reached("default") == ARROWS | EVERYBODY


def test_both_ends_of_an_arrow_say_the_same() -> None:
    """Nothing is let in that nobody may send, nor sent to where it is not let in. The API's own ports are open."""
    found = objects(text(CASES["keda"], **NARROW))
    own, policies = [place for place in places(found) if place not in OTHERS], of_kind(found, "NetworkPolicy")
    for source in own:
        for target in own:
            for port in target.ports - {8080, 9000}:
                sent = allows(policies, source, "Egress", target, port)
                assert sent == allows(policies, target, "Ingress", source, port), (source.name, target.name, port)


def test_who_may_ask_can_be_named() -> None:
    """The namespace that is named, and `helm test`."""
    peers = [{"namespaceSelector": {"matchLabels": {"team": "apps"}}}]
    assert reached("default", gateway__allowFrom=peers) == ARROWS | {("client", "gateway", p) for p in (8080, 9000)}


def test_pictures_come_from_the_public_internet_or_from_nowhere() -> None:
    assert ("gateway", "internet", 80) not in ARROWS
    with_plain = reached("default", gateway__fetch="all")
    assert with_plain == ARROWS | EVERYBODY | {("gateway", "internet", 80)}
    assert reached("default", gateway__fetch="off") == ARROWS - {("gateway", "internet", 443)} | EVERYBODY


def test_another_redis_is_reached_and_ours_is_gone() -> None:
    elsewhere = {
        (source, "redis elsewhere", 6380) if target == "redis" else (source, target, port)
        for source, target, port in ARROWS
    }
    assert reached("redis elsewhere") == elsewhere | EVERYBODY


def test_weights_are_copied_from_the_store_by_stages_alone() -> None:
    assert reached("url") == ARROWS | EVERYBODY | {(stage, "store", 9000) for stage in STAGES}


def test_spans_go_to_the_collector_where_there_is_one() -> None:
    traced = {"tracing__endpoint": "http://otel.tracing.svc:4318", "networkPolicy__collector__namespace": "tracing"}
    spans = {(stage, "collector", 4318) for stage in STAGES}
    assert reached("default", **traced) == reached("kserve", **traced) == ARROWS | EVERYBODY | spans
    traced["networkPolicy__collector__cidr"] = f"{COLLECTOR}/32"
    outside = {(stage, "collector elsewhere", 4318) for stage in STAGES}
    assert reached("default", **traced) == ARROWS | EVERYBODY | spans | outside


def test_kserves_pods_have_the_same_arrows() -> None:
    assert reached("kserve") == ARROWS | EVERYBODY


def test_knative_stands_between_gateway_and_model() -> None:
    """Its namespaces are let through on every port: which one is its own affair."""
    expected = without(ARROWS, "llama") | {arrow for arrow in ARROWS if arrow[0] == "llama"} | EVERYBODY
    expected |= {("prometheus", "llama", 8002)} | {("knative", "llama", port) for port in (8000, 8001, 8002)}
    expected |= {("gateway", "knative", port) for port in (8012, 443)}
    assert reached("knative") == expected


def test_an_operator_of_one_namespace_hears_its_trainers_alone() -> None:
    assert reached("one namespace") == without(ARROWS, "trainer elsewhere") | EVERYBODY


def test_data_workers_reach_what_they_read() -> None:
    extra = {("operator-data", *to) for to in (("redis", 6379), ("kubernetes", 6443), ("dns", 53))}
    extra |= {("operator-data", "internet", 443), ("operator-data", "private host", 443)}
    # A data set may lie in the cluster, too.
    extra |= {("operator-data", other, 443) for other in ("client", "neighbour", "knative")}
    assert reached("default", operator__data__claims=["results"]) == ARROWS | EVERYBODY | extra


@pytest.mark.parametrize("kind", ["Ingress", "Egress"])
def test_every_pod_of_ours_is_under_a_policy(kind: str) -> None:
    found = objects(text(CASES["keda"]))
    policies = [one["spec"] for one in of_kind(found, "NetworkPolicy")]
    for pod in pods(found):
        assert [one for one in policies if kind in one["policyTypes"] and matches(one["podSelector"], pod.labels)]


def test_they_can_be_left_out() -> None:
    assert not of_kind(objects(text(CASES["serving alone"])), "NetworkPolicy")
