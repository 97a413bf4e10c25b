"""The chart's own settings: what bounds each stage from its values, its scalers from a rendered manifest.

Values are merged as Helm does (a later file over an earlier one, map by map). The scalers' rules stand in the chart's
templates and nowhere else, so they are read from what `helm template` prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cli.capacity.control import Scaling
from cli.capacity.engine import EngineLimits
from cli.capacity.journey import Terms
from cli.capacity.request import STAGES
from cli.capacity.routes import Connections
from cli.capacity.scaler import Direction, Metric, Policy, ScalerSettings
from cli.capacity.simulate import GAUGES, Limits
from cli.text import CommandError

CHART_VALUES = Path(__file__).parents[2] / "charts" / "ziya-visual" / "values.yaml"
_QUERY = re.compile(r"(?P<fold>sum|max)\((?P<inner>.*)\)")
_SELECTOR = re.compile(r"\{[^{}]*\}")
_NEVER_ADDS = 1000000.0  # the threshold of a trigger that only wakes

Values = Mapping[str, Any]


def read_values(files: Sequence[Path], chart: Path = CHART_VALUES) -> Values:
    """The chart's values with those of `files` over them. Raises CommandError."""
    if not chart.is_file() and not files:
        raise CommandError("there is no chart beside this program: give its values with --values …/values.yaml", 2)
    merged: dict[str, Any] = {}
    for path in ([chart] if chart.is_file() else []) + list(files):
        merged = _over(merged, _yaml(path))
    return merged


def _yaml(path: Path) -> dict[str, Any]:
    try:
        read = yaml.load(path.read_text("utf-8"), yaml.CSafeLoader)
    except OSError as error:
        raise CommandError(f"cannot read the values {path}: {error.strerror}", 2) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CommandError(f"the values {path} are not YAML: {' '.join(str(error).split())}", 2) from error
    if not isinstance(read or {}, dict):
        raise CommandError(f"the values {path} are not a map", 2)
    return read or {}


def _over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Maps are merged, all else is replaced, and null removes."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _over(old, value)
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def number(values: Values, path: str) -> float:
    """The number at a dotted name. Raises CommandError where there is none."""
    found: Any = values
    for word in path.split("."):
        found = found.get(word) if isinstance(found, dict) else None
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise CommandError(f"the chart's values have no number {path}", 2)
    return found


def limits_of(values: Values) -> Limits:
    """What bounds the stages; where the chart sets nothing, the programs' defaults."""
    return Limits(
        terms=Terms(int(number(values, "gateway.maxInFlight")), number(values, "cacheSeconds")),
        vision_max_batch=int(number(values, "vision.maxBatch")),
        qformer_max_batch=int(number(values, "qformer.maxBatch")),
        engine=EngineLimits(int(number(values, "llama.maxRunning")), int(number(values, "llama.maxWaiting"))),
        request_timeout=number(values, "requestTimeout"),
    )


def scaling_of(manifest: str, values: Values) -> Scaling:
    """The scalers of the four stages in what `helm template` printed.

    Raises CommandError when a stage has none, or one that reads what the simulation does not know.
    """
    objects = [one for one in yaml.load_all(manifest, yaml.CSafeLoader) if one]
    found = {stage: _scaler(objects, stage) for stage in STAGES}
    return Scaling(found, number(values, "monitoring.intervalSeconds"), Connections(_connection_age(objects)))


def _connection_age(objects: Iterable[Values]) -> float:
    """After how many seconds Triton ends a connection; ziya/rpc_server.py does so at the same age."""
    ages = re.findall(r"--grpc-max-connection-age=(\d+)", yaml.safe_dump_all(objects))
    if not ages:
        raise CommandError("the manifest has no --grpc-max-connection-age of Triton", 2)
    return int(ages[0]) / 1000


def _scaler(objects: Sequence[Values], stage: str) -> ScalerSettings:
    mine = [one for one in objects if one.get("kind") in ("HorizontalPodAutoscaler", "ScaledObject")]
    mine = [one for one in mine if one["metadata"]["labels"].get("app.kubernetes.io/component") == stage]
    if not mine:
        raise CommandError(f"the manifest has no scaler of {stage}: set autoscaling.kind to hpa or keda", 2)
    spec = mine[0]["spec"]
    return _keda(spec) if mine[0]["kind"] == "ScaledObject" else _hpa(spec)


def _hpa(spec: Values) -> ScalerSettings:
    up, down = (_direction(spec["behavior"][word]) for word in ("scaleUp", "scaleDown"))
    return ScalerSettings(tuple(map(_metric, spec["metrics"])), spec["minReplicas"], spec["maxReplicas"], up, down)


def _metric(given: Values) -> Metric:
    kind = given["type"].lower()
    one = given[kind]
    # External here is what all pods export alike, of which the adapter takes the largest.
    fold = "max" if kind == "external" else "sum"
    return Metric(_known(one["metric"]["name"]), _quantity(one["target"]["averageValue"]), fold)


def _known(name: str) -> str:
    if name not in GAUGES:
        raise CommandError(f"the simulation does not know how to compute {name}", 2)
    return name


def _keda(spec: Values) -> ScalerSettings:
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    metrics, wakers = list[Metric](), list[str]()
    for trigger in (one["metadata"] for one in spec["triggers"]):
        query = _QUERY.fullmatch(trigger["query"])
        if query is None:
            raise CommandError(f"the simulation does not know how to compute {trigger['query']}", 2)
        name = _known(_SELECTOR.sub("", query["inner"]))
        wakers.append(name)
        if float(trigger["threshold"]) < _NEVER_ADDS:
            metrics.append(Metric(name, float(trigger["threshold"]), query["fold"]))
    return ScalerSettings(
        tuple(metrics),
        spec["minReplicaCount"],
        spec["maxReplicaCount"],
        _direction(behavior["scaleUp"]),
        _direction(behavior["scaleDown"]),
        activation=True,
        poll=spec["pollingInterval"],
        cooldown=spec["cooldownPeriod"],
        wakers=tuple(wakers),
    )


def _direction(given: Values) -> Direction:
    policies = tuple(Policy(one["type"], one["value"], one["periodSeconds"]) for one in given["policies"])
    return Direction(given["stabilizationWindowSeconds"], policies)


def _quantity(text: str | int) -> float:
    """A number as Kubernetes writes it: 500m is 0.5."""
    return float(str(text).removesuffix("m")) / (1000 if str(text).endswith("m") else 1)
