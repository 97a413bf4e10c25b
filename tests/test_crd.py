"""The CRD: the samples pass it, an API server holds jobs to its rules, and training/job.py reads the same fields."""

from __future__ import annotations

import copy
import json
import types
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import kubernetes_validate
import pytest
import yaml
from kubernetes.client import ApiClient, ApiException, ApiextensionsV1Api, CustomObjectsApi
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tests.kube.cluster import Cluster
from tests.kube.waiting import eventually
from training.job import Spec, load
from training.recipe import LANGUAGES, TASKS

ROOT = Path(__file__).parents[1]
CRD: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "operator" / "crd.yaml").read_text("utf-8"))
SCHEMA: dict[str, Any] = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
SAMPLES = sorted((ROOT / "deploy" / "samples").glob("*.yaml"))
# What a schema says of a value, and what pydantic calls it.
BOUNDS = {
    "minimum": "ge",
    "maximum": "le",
    "minLength": "min_length",
    "maxLength": "max_length",
    "minItems": "min_length",
    "maxItems": "max_length",
    "maxProperties": "max_length",
    "pattern": "pattern",
}
# A set of names that only code knows (training/recipe.py), checked by a function there.
CHOICES = {".stages.data.task": TASKS, ".stages.data.language": LANGUAGES}


def nodes(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every node of the schema, with its path."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from nodes(schema[name], f"{path}[]")


def test_kubernetes_takes_the_definition() -> None:
    kubernetes_validate.validate(CRD, "1.36", strict=True)


def test_every_list_map_and_string_has_a_bound_and_every_field_a_description() -> None:
    for path, node in nodes(SCHEMA):
        kind = node.get("type")
        if path in ("", ".apiVersion", ".kind", ".metadata"):
            continue  # Kubernetes' own
        if kind == "string" or node.get("x-kubernetes-int-or-string"):
            assert "enum" in node or "maxLength" in node, path
        elif kind == "array":
            assert "maxItems" in node, path
        elif kind == "object":
            assert "properties" in node or "maxProperties" in node, path
        assert path.endswith("[]") or node.get("description") or path == ".spec.model.checkpoint", path


def test_only_what_the_trainer_checks_is_left_open() -> None:
    opened = [path for path, node in nodes(SCHEMA) if node.get("x-kubernetes-preserve-unknown-fields")]
    assert opened == [".spec.stages[].train", ".spec.stages[].options"]


def test_columns_are_plain_fields_of_the_status() -> None:
    fields = {path for path, _ in nodes(SCHEMA)}
    columns = CRD["spec"]["versions"][0]["additionalPrinterColumns"]
    assert " ".join(column["name"].upper() for column in columns) == "PHASE STAGE STEP LOSS ETA ATTEMPT AGE"
    assert all(column["jsonPath"] in fields for column in columns[:-1])


@pytest.mark.parametrize("sample", SAMPLES, ids=[path.stem for path in SAMPLES])
def test_the_trainer_reads_every_sample(sample: Path) -> None:
    job = load(sample)
    assert job.metadata.name in (sample.stem, f"ziya-{sample.stem}")
    assert job.spec.output.pvc


# The trainer's reader and the CRD, field by field.


def facts(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What the schema says of one value, in pydantic's words."""
    said = {ours: schema[theirs] for theirs, ours in BOUNDS.items() if theirs in schema}
    if schema.get("exclusiveMinimum"):
        said["gt"] = said.pop("ge")
    if "enum" in schema:
        said["choices"] = sorted(schema["enum"])
    return said


def told(hint: Any, metadata: list[Any], path: str) -> dict[str, Any]:
    """What the reader's type says of the same value."""
    said: dict[str, Any] = {"choices": sorted(CHOICES[path])} if path in CHOICES else {}
    if get_origin(hint) is Literal:
        said["choices"] = sorted(get_args(hint))
    for one in metadata:
        inner = one.metadata if isinstance(one, FieldInfo) else [one]
        for part in inner:
            for name in ("ge", "gt", "le", "min_length", "max_length", "pattern"):
                if (value := getattr(part, name, None)) is not None:
                    said[name] = value
    return said


def bare(hint: Any) -> tuple[Any, list[Any]]:
    """Without None and without annotations, which are given beside."""
    metadata: list[Any] = []
    while True:
        if hasattr(hint, "__metadata__"):
            metadata = [*hint.__metadata__, *metadata]
            hint = hint.__origin__
        elif get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint):
            hint = next(one for one in get_args(hint) if one is not type(None))
        else:
            return hint, metadata


def plain(value: Any) -> Any:
    """A default as the CRD writes it: parts that are all defaults are {}."""
    if isinstance(value, BaseModel):
        return {}
    return list(value) if isinstance(value, tuple) else value


def differences(model: type[BaseModel], schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    if fields.keys() != schema["properties"].keys():
        yield f"{path}: {sorted(fields.keys() ^ schema['properties'].keys())}"
    required = {name for name, field in fields.items() if field.is_required()}
    if required != set(schema.get("required", ())):
        yield f"{path}: required {sorted(required ^ set(schema.get('required', ())))}"
    for name, field in fields.items():
        yield from _different(field, schema["properties"][name], f"{path}.{name}")


def _different(field: FieldInfo, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    hint, metadata = bare(field.annotation)
    default = plain(field.get_default(call_default_factory=True))
    default = None if default is PydanticUndefined else default
    if schema.get("default") != default and not (default in (None, {}) and "default" not in schema):
        yield f"{path}: default {default!r}, not {schema.get('default')!r}"
    yield from _value(hint, [*metadata, *field.metadata], schema, path)


def _value(hint: Any, metadata: list[Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
    if (ours := told(hint, metadata, path)) != (theirs := facts(schema)):
        yield f"{path}: {ours}, not {theirs}"
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        yield from differences(hint, schema, path)
    elif "items" in schema:
        inner, more = bare(get_args(hint)[0])
        yield from _value(inner, more, schema["items"], path)
    elif "additionalProperties" in schema and "maxLength" in schema["additionalProperties"]:
        amount, more = bare(get_args(hint)[1])
        if get_origin(amount) in (Union, types.UnionType):  # a whole number or a string
            amount, more = bare(get_args(amount)[1])
        yield from _value(amount, more, schema["additionalProperties"], path)


def test_the_trainer_reads_the_same_fields_with_the_same_bounds_and_defaults() -> None:
    assert list(differences(Spec, SCHEMA["properties"]["spec"])) == []


# What an API server says to a job, new or changed.

PLACE = {"group": "ziya.dev", "version": "v1alpha1", "namespace": "default", "plural": "trainingjobs"}
STARTED = [
    {"name": "data", "phase": "Succeeded", "attempt": 1},
    {"name": "align", "phase": "Running", "attempt": 2},
    {"name": "test", "phase": "Pending"},
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiClient]:
    with Cluster(tmp_path_factory.mktemp("cluster"), controllers=()) as cluster:
        client = cluster.client()
        ApiextensionsV1Api(client).create_custom_resource_definition(CRD)
        jobs = CustomObjectsApi(client)
        eventually(lambda: jobs.list_namespaced_custom_object(**PLACE)["kind"])
        yield client


def job(**spec: Any) -> dict[str, Any]:
    """Three stages, and what a test wants otherwise."""
    align = {"name": "align", "type": "align", "needs": ["data"], "data": [{"data": "data/train"}]}
    stages = [
        {"name": "data", "type": "data", "builder": "birds.build", "options": {"seed": 1}},
        {**align, "train": {"optimizer": {"steps": 20}}},
        {"name": "test", "type": "eval", "needs": ["align"], "train": {"checks": [{"data": "data/test"}]}},
    ]
    return {
        "apiVersion": "ziya.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": f"j-{uuid.uuid4().hex[:8]}"},
        "spec": {"model": {"checkpoint": "data/initial"}, "output": {"pvc": "out"}, "stages": stages, **spec},
    }


def created(api: ApiClient, body: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = CustomObjectsApi(api).create_namespaced_custom_object(
        **PLACE, body=body, field_validation="Strict"
    )
    return made


def started(api: ApiClient, **spec: Any) -> dict[str, Any]:
    """A job whose first stage is done and whose second one runs."""
    made = created(api, job(**spec))
    name, jobs = made["metadata"]["name"], CustomObjectsApi(api)
    jobs.patch_namespaced_custom_object_status(**PLACE, name=name, body={"status": {"stages": STARTED}})
    return copy.deepcopy(jobs.get_namespaced_custom_object(**PLACE, name=name))


def replaced(api: ApiClient, body: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = CustomObjectsApi(api).replace_namespaced_custom_object(
        **PLACE, name=body["metadata"]["name"], body=body
    )
    return made


def refusal(error: ApiException) -> str:
    assert error.status == 422, error.body
    return str(json.loads(error.body)["message"])


@pytest.mark.parametrize("sample", SAMPLES, ids=[path.stem for path in SAMPLES])
def test_an_api_server_takes_every_sample_and_the_trainer_what_it_gives_back(
    api: ApiClient, sample: Path, tmp_path: Path
) -> None:
    file = yaml.safe_load(sample.read_text("utf-8"))
    made = created(api, {**file, "metadata": {"name": f"{file['metadata']['name']}-{uuid.uuid4().hex[:8]}"}})
    name, jobs = made["metadata"]["name"], CustomObjectsApi(api)
    stages = [{"name": stage["name"], "phase": "Pending"} for stage in made["spec"]["stages"]]
    jobs.patch_namespaced_custom_object_status(**PLACE, name=name, body={"status": {"stages": stages}})
    back = tmp_path / "back.yaml"
    back.write_text(yaml.safe_dump(jobs.get_namespaced_custom_object(**PLACE, name=name)), "utf-8")
    assert load(back).spec == load(sample).spec


def test_a_part_that_is_not_said_gets_its_defaults(api: ApiClient) -> None:
    spec = created(api, job(promotion={"inferenceService": "chat"}))["spec"]
    assert spec["suspend"] is False
    assert spec["pod"]["claims"] == []
    assert spec["stages"][1]["retry"] == {"limit": 3, "disruptionLimit": 20, "backoff": {"initial": 10, "max": 600}}
    assert spec["stages"][1]["parallelism"] == {"nodes": 1, "procsPerNode": 1}
    assert spec["stages"][1]["checkpoint"] == {"graceSeconds": 30}
    assert spec["promotion"]["steps"] == [10, 50, 100]


def stage(**fields: Any) -> dict[str, Any]:
    return {"name": "one", "type": "eval", **fields}


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"stages": [stage(type="data")]}, "one: a stage of type data needs a builder"),
        ({"stages": [stage(builder="x")]}, "one: only a stage of type data has builder, options and shards"),
        ({"stages": [stage(options={})]}, "one: only a stage of type data has builder, options and shards"),
        ({"stages": [stage(shards=2)]}, "one: only a stage of type data has builder, options and shards"),
        ({"stages": [stage(type="chat")]}, "one: a stage of type chat needs data: a list of sources"),
        ({"stages": [stage(recipe="chat")]}, "one: a stage of type eval does not train and has no recipe"),
        ({"stages": [stage(), stage()]}, 'spec.stages[1]: Duplicate value: {"name":"one"}'),
        (
            {"stages": [stage(needs=["two"]), stage(name="two")]},
            "a stage's needs may only name stages that stand before",
        ),
        ({"stages": [stage(needs=["one"])]}, "a stage's needs may only name stages that stand before it"),
        ({"stages": []}, "spec.stages in body should have at least 1 items"),
        ({"stages": [stage(type="promote")]}, "needs a promotion: it names the InferenceService"),
        ({"promotion": {"inferenceService": "a", "steps": [50, 10, 100]}}, "percentages must rise, and the last one"),
        ({"promotion": {"inferenceService": "a", "steps": [10, 50]}}, "percentages must rise, and the last one"),
        ({"pod": {"env": [{"name": "A"}]}}, "a variable has either a value or a valueFrom"),
        (
            {"pod": {"env": [{"name": "A", "value": "1", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}},
            "a variable has either a value or a valueFrom",
        ),
        ({"queueName": "Research"}, "spec.queueName in body should match"),
    ],
)
def test_a_wrong_job_is_refused_with_a_sentence(api: ApiClient, spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ApiException) as caught:
        created(api, job(**spec))
    assert sentence in refusal(caught.value)


@pytest.mark.parametrize("name", ["a.b", "a" * 41])
def test_a_name_that_pods_cannot_have_is_refused(api: ApiClient, name: str) -> None:
    with pytest.raises(ApiException) as caught:
        created(api, {**job(), "metadata": {"name": name}})
    assert "metadata.name: at most 40 characters, and no dots" in refusal(caught.value)


Change = dict[str, Any]


def edit(raw: dict[str, Any], at: str, value: Any) -> None:
    *outer, last = [int(part) if part.isdigit() else part for part in at.split("/")]
    place: Any = raw["spec"]
    for part in outer:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value


EDITED = "align has started and cannot be edited, except its retry"
ROOM = "parallelism.nodes and resources of align, which has started, can only be changed while spec.suspend is true"


@pytest.mark.parametrize(
    ("at", "value", "sentence"),
    [
        ("model/checkpoint", "other", "spec.model and spec.output cannot be changed once a stage has started"),
        ("output/pvc", "other", "spec.model and spec.output cannot be changed once a stage has started"),
        ("stages/1/train/optimizer/steps", 30, EDITED),
        ("stages/1/data/0/ratio", 2, EDITED),
        ("stages/1/type", "instruct", EDITED),
        ("stages/1/needs", [], EDITED),
        ("stages/1/recipe", "chat", EDITED),
        ("stages/1/gate", {"metric": "caption/en.exact", "atLeast": 0.1}, EDITED),
        ("stages/1/checkpoint/keep", 9, EDITED),
        ("stages/1/parallelism/procsPerNode", 2, EDITED),
        ("stages/1/parallelism/strategy", "ddp", EDITED),
        ("stages/0/options/seed", 2, "data has started and cannot be edited"),
        ("stages/0/builder", "fish.build", "data has started and cannot be edited"),
        ("stages/0/shards", 2, "data has started and cannot be edited"),
        ("stages/1/parallelism/nodes", 2, ROOM),
        ("stages/1/resources", {"limits": {"cpu": 2}}, ROOM),
        ("stages/1/name", "aligned", "align has started and cannot be removed, renamed or moved"),
        ("stages/0", None, "data has started and cannot be removed, renamed or moved"),
    ],
)
def test_what_has_started_cannot_be_changed(api: ApiClient, at: str, value: Any, sentence: str) -> None:
    body = started(api)
    edit(body, at, value)
    with pytest.raises(ApiException) as caught:
        replaced(api, body)
    assert sentence in refusal(caught.value)


def test_a_stage_cannot_be_put_before_one_that_has_started(api: ApiClient) -> None:
    body = started(api)
    body["spec"]["stages"].insert(1, stage(name="early"))
    with pytest.raises(ApiException) as caught:
        replaced(api, body)
    assert "align has started and cannot be removed, renamed or moved" in refusal(caught.value)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        ("stages/1/retry", {"limit": 9, "disruptionLimit": 99}),
        ("stages/2/train", {"checks": [{"data": "data/other"}]}),
        ("stages/2/parallelism/nodes", 4),
        ("stages/2", None),
        ("suspend", True),
        ("activeDeadlineSeconds", 60),
        ("promotion", {"inferenceService": "chat"}),
    ],
)
def test_what_has_not_started_can_be_changed(api: ApiClient, at: str, value: Any) -> None:
    body = started(api)
    edit(body, at, value)
    assert replaced(api, body)["metadata"]["generation"] == body["metadata"]["generation"] + 1


def test_nodes_and_resources_change_while_the_job_is_suspended(api: ApiClient) -> None:
    body = started(api, suspend=True)
    edit(body, "stages/1/parallelism/nodes", 2)
    edit(body, "stages/1/resources", {"limits": {"cpu": 2}})
    edit(body, "suspend", False)
    assert replaced(api, body)["spec"]["stages"][1]["parallelism"]["nodes"] == 2


def test_before_anything_has_started_everything_can_be_changed(api: ApiClient) -> None:
    body = created(api, job())
    for at, value in (("model/checkpoint", "other"), ("stages/1/type", "instruct"), ("stages/2", None)):
        edit(body, at, value)
    replaced(api, body)
