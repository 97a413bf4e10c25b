"""The simulation's settings are the chart's: values merged as Helm does, scalers as Helm renders them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cli.capacity.chart_settings import CHART_VALUES, limits_of, read_values, scaling_of
from cli.capacity.request import STAGES
from cli.capacity.scaler import Metric, Policy
from cli.capacity.simulate import Limits
from cli.text import CommandError
from tests.helm import CASES, CHART, Case, needs_helm, objects, pods, text

VALUES_14B = CHART / "values-14b.yaml"


def test_the_charts_own_values_are_the_programs_defaults() -> None:
    assert limits_of(read_values([])) == Limits()


@needs_helm
def test_values_mean_what_helm_makes_of_them(tmp_path: Path) -> None:
    """Bounds that are read from files equal those that the rendered pods get in their environment."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("llama: {maxWaiting: 7}\nvision: {maxBatch: 3}\ngateway: {maxInFlight: 11}\ncacheSeconds: 99\n")
    limits = limits_of(read_values([VALUES_14B, mine]))
    overrides = {"llama.maxWaiting": 7, "vision.maxBatch": 3, "gateway.maxInFlight": 11, "cacheSeconds": 99}
    rendered = pods(objects(text(Case("values-14b.yaml", overrides))))
    found = {
        variable["name"]: variable.get("value")
        for pod in rendered
        for variable in pod.spec["containers"][0].get("env", [])
    }
    assert int(found["ZIYA_LLAMA_MAX_RUNNING"]) == limits.engine.slots == 16
    assert int(found["ZIYA_LLAMA_MAX_WAITING"]) == limits.engine.waiting == 7
    assert int(found["ZIYA_VISION_MAX_BATCH"]) == limits.vision_max_batch == 3
    assert int(found["ZIYA_QFORMER_MAX_BATCH"]) == limits.qformer_max_batch
    assert int(found["ZIYA_GATEWAY_MAX_IN_FLIGHT"]) == limits.terms.max_in_flight == 11
    assert float(found["ZIYA_REQUEST_TIMEOUT"]) == limits.request_timeout == 120
    assert float(found["ZIYA_TOKENS_TTL"]) == limits.terms.cache_seconds == 99


@needs_helm
def test_hpa_and_keda_are_read_alike() -> None:
    """Both read the same metrics for the same targets, with the same behaviour."""
    values = read_values([])
    hpa, keda = (scaling_of(text(CASES["default"], autoscaling__kind=kind), values) for kind in ("hpa", "keda"))
    assert set(hpa.stages) == set(keda.stages) == set(STAGES)
    for stage in STAGES:
        plain = replace(keda.stages[stage], activation=False, poll=15.0, cooldown=300.0, wakers=())
        assert plain == hpa.stages[stage], stage
    assert hpa.connections == keda.connections
    assert 0 < hpa.connections.age < 3600


@needs_helm
def test_the_scalers_are_what_the_values_say() -> None:
    rendered = text(
        CASES["default"],
        autoscaling__kind="keda",
        autoscaling__pollSeconds=7,
        autoscaling__downSeconds=111,
        vision__scaling={"min": 0, "max": 5, "backlogSeconds": 0.25},
        llama__scaling={"min": 2, "max": 9, "waiting": 3, "kvUse": 0.7},
        qformer__scaling={"busBacklog": 21},
    )
    stages = scaling_of(rendered, read_values([])).stages
    vision, llama, qformer = stages["vision"], stages["llama"], stages["qformer"]
    assert Metric("ziya_vision_batch_backlog_seconds", 0.25) in vision.metrics
    assert (vision.minimum, vision.maximum, vision.poll, vision.cooldown) == (0, 5, 7, 111)
    assert vision.activation
    assert "ziya_gateway_in_flight" in vision.wakers  # a request wakes it, and adds no replica
    assert "ziya_gateway_in_flight" not in {metric.name for metric in vision.metrics}
    assert Metric("ziya_qformer_bus_backlog", 21.0, "max") in qformer.metrics
    assert {metric.name: metric.target for metric in llama.metrics}["ziya_llama_waiting"] == 3
    assert {metric.name: metric.target for metric in llama.metrics}["ziya_llama_kv_use"] == 0.7
    assert (llama.minimum, llama.maximum) == (2, 9)
    assert llama.up.window == 0
    assert llama.down.window == 111
    assert all(isinstance(policy, Policy) for policy in (*llama.up.policies, *llama.down.policies))


@needs_helm
def test_a_manifest_without_scalers_is_refused() -> None:
    with pytest.raises(CommandError, match=r"no scaler of gateway: set autoscaling\.kind"):
        scaling_of(text(), read_values([]))


@needs_helm
def test_a_query_that_is_not_understood_is_refused_rather_than_guessed() -> None:
    rendered = text(CASES["default"], autoscaling__kind="keda").replace(
        "sum(ziya_llama_waiting", "stddev(ziya_llama_waiting"
    )
    with pytest.raises(CommandError, match="does not know how to compute stddev"):
        scaling_of(rendered, read_values([]))


def test_values_over_values(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("a: {b: 1, c: 2}\nd: [1, 2]\ne: 5\n")
    two.write_text("a: {b: 3}\nd: [4]\ne: null\n")
    assert read_values([one, two], chart=tmp_path / "none.yaml") == {"a": {"b": 3, "c": 2}, "d": [4]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("a: [", "are not YAML"), ("- 1\n", "are not a map"), ("a: 1\n", "no number gateway.maxInFlight")],
)
def test_values_that_cannot_be_used(tmp_path: Path, content: str, sentence: str) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(content)
    with pytest.raises(CommandError, match=sentence):
        limits_of(read_values([values], chart=tmp_path / "none.yaml"))


def test_without_a_chart_one_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="--values"):
        read_values([], chart=tmp_path / "none.yaml")
    assert CHART_VALUES.is_file()


@needs_helm
def test_a_metric_that_is_not_simulated_is_refused() -> None:
    for kind in ("hpa", "keda"):
        rendered = text(CASES["default"], autoscaling__kind=kind).replace("ziya_llama_waiting", "ziya_llama_longing")
        with pytest.raises(CommandError, match="does not know how to compute ziya_llama_longing"):
            scaling_of(rendered, read_values([]))
