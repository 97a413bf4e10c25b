"""A TrainingJob file: everything wrong with it in one go, and every field of every recipe settable from YAML."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from pydantic.alias_generators import to_camel

from training.errors import BadConfig
from training.job import TrainingJob, load, parse
from training.override import recipe_of
from training.recipe import LOSSES, Check, Recipe, Source
from training.stages import STAGES

GOOD = """
apiVersion: ziya.dev/v1alpha1
kind: TrainingJob
metadata: {name: birds}
spec:
  model: {checkpoint: /models/ziya}
  output: {path: out, pvc: results}
  queueName: research
  priorityClassName: low
  activeDeadlineSeconds: 86400
  ttlSecondsAfterFinished: 600
  promotion: {inferenceService: chat}
  stages:
    - name: data
      type: data
      builder: birds.build
      options: {seed: 1}
    - name: align
      type: align
      needs: [data]
      data:
        - {data: out/data/train, task: caption, language: zh, ratio: 2}
        - {data: out/data/train, task: vqa, language: en, ratio: 5e-1, field: quiz, templates: vqa_short}
      train:
        optimizer: {steps: 20, rate: 1e-4, ema: null}
        checks: [{data: out/data/held, task: caption, language: zh}]
      parallelism: {nodes: 2, procsPerNode: 8, strategy: fsdp}
      resources: {limits: {nvidia.com/gpu: 8}}
      retry: {limit: 1, disruptionLimit: 9, backoff: {initial: 1, max: 60}}
      checkpoint: {everySteps: 5, keep: 3, graceSeconds: 90}
      gate: {metric: caption/zh.exact, atLeast: 0.4}
"""


def changed(at: Mapping[str, Any] = types.MappingProxyType({})) -> dict[str, Any]:
    """The good file with other values, by paths below spec such as stages/1/train."""
    raw: dict[str, Any] = yaml.safe_load(GOOD.replace("1e-4", "1.0e-4").replace("5e-1", "0.5"))
    for path, value in at.items():
        *outer, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        place: Any = raw["spec"]
        for part in outer:
            place = place[part]
        place[last] = value
    return raw


def complaint(at: Mapping[str, Any]) -> list[str]:
    with pytest.raises(BadConfig) as caught:
        parse(changed(at), "job.yaml")
    return str(caught.value).splitlines()


def test_a_good_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(GOOD, "utf-8")
    job = load(path)
    stage = job.stage("align")
    recipe = recipe_of(stage)
    assert recipe.data == (
        Source("out/data/train", language="zh", ratio=2.0),
        Source("out/data/train", task="vqa", ratio=0.5, field="quiz", templates="vqa_short"),
    )
    assert (recipe.optimizer.steps, recipe.optimizer.rate, recipe.optimizer.ema) == (20, 1e-4, None)
    assert recipe.checks == (Check("out/data/held", language="zh"),)
    assert (recipe.saving.every_steps, recipe.saving.keep, recipe.compute.strategy) == (5, 3, "fsdp")
    assert (stage.retry.backoff.max, stage.checkpoint.grace_seconds, stage.parallelism.procs_per_node) == (60, 90, 8)
    assert job.spec.output.pvc == "results"


def test_a_written_job_reads_as_the_same(tmp_path: Path) -> None:
    job = parse(changed(), "job.yaml")
    path = tmp_path / "job.yaml"
    path.write_text(job.to_yaml(), "utf-8")
    assert load(path) == job
    assert "procsPerNode" in job.to_yaml()


def test_all_mistakes_of_a_file_are_told_at_once() -> None:
    checks = [{"data": "d", "task": "captoin", "topK": 0}, {"task": "vqa"}]
    train = {"optimizer": {"stepz": 1, "rate": "fast"}, "losses": {"lmm": 1}, "checks": checks}
    assert complaint({"stages/1/train": train, "stages/1/gate": None}) == [
        "job.yaml: spec.stages[1].train.optimizer.stepz: there is no such field; did you mean steps?",
        "job.yaml: spec.stages[1].train.optimizer.rate: must be float, not 'fast'",
        "job.yaml: spec.stages[1].train.checks[1].data: is missing",
    ]
    train = {"losses": {"lmm": 1}, "learn": {"qfromer": 1}, "labelSmoothing": 2, "checks": checks[:1]}
    assert complaint({"stages/1/train": train, "stages/1/gate": None}) == [
        "job.yaml: spec.stages[1].train.labelSmoothing: must be between 0 and 1, not 2.0",
        f"job.yaml: spec.stages[1].train.losses.lmm: there is no loss 'lmm'; losses are {', '.join(LOSSES)}; "
        "did you mean lm?",
        "job.yaml: spec.stages[1].train.learn.qfromer: there is no part 'qfromer'; parts are vision, qformer, "
        "projection, llama; did you mean qformer?",
        "job.yaml: spec.stages[1].train.checks[0].task: there is no task 'captoin', only caption, vqa, choice, "
        "classify, ocr, dialogue; did you mean caption?",
        "job.yaml: spec.stages[1].train.checks[0].topK: must be at least 1, not 0",
    ]


@pytest.mark.parametrize(
    ("at", "line"),
    [
        ({"stages/1/needs": ["dta"]}, "spec.stages[1].needs[0]: 'align' needs 'dta', which is no stage before it"),
        ({"stages/0/name": "align", "stages/1/needs": []}, "spec.stages[1].name: two stages are called 'align'"),
        ({"stages/0/needs": ["align"]}, "spec.stages[0].needs[0]: 'data' needs 'align'"),
        ({"stages/1/name": "Align"}, "spec.stages[1].name: must be lower-case letters, digits and hyphens"),
        ({"stages/1/type": "instrct"}, "did you mean instruct?"),
        ({"stages/1/recipe": "quick"}, "spec.stages[1].recipe: there is no recipe 'quick'"),
        ({"stages/1/builder": "x"}, "spec.stages[1].builder: only a stage of type data has it"),
        ({"stages/0/builder": None}, "spec.stages[0].builder: a stage of type data needs a builder"),
        ({"stages/0/train": {"seed": 1}}, "spec.stages[0].train.seed: a stage of type data does not train"),
        ({"stages/0/recipe": "align"}, "spec.stages[0].recipe: a stage of type data does not train"),
        ({"stages/1/data": []}, "spec.stages[1].data: a stage of type align needs data"),
        ({"stages/1/data/0/ratio": 0}, "spec.stages[1].data[0].ratio: input should be greater than 0, not 0"),
        ({"stages/1/data/0/ratio": "2"}, "spec.stages[1].data[0].ratio: input should be a valid number, not '2'"),
        (
            {"stages/1/data/0/samplesEach": 0},
            "spec.stages[1].data[0].samplesEach: input should be greater than or equal",
        ),
        ({"stages/1/data/0/samplesEach": 2.5}, "spec.stages[1].data[0].samplesEach: input should be a valid integer"),
        ({"stages/1/data/0/sampleEach": 2}, "data[0].sampleEach: there is no such field; did you mean samplesEach?"),
        ({"stages/1/data/0/task": "vqq"}, "spec.stages[1].data[0].task: there is no task 'vqq'"),
        ({"stages/1/data/1/language": "fr"}, "spec.stages[1].data[1].language: there is no language 'fr'"),
        ({"stages/1/data/1/lang": "en"}, "spec.stages[1].data[1].lang: there is no such field; did you mean language?"),
        ({"stages/1/retry/limit": True}, "spec.stages[1].retry.limit: input should be a valid integer, not True"),
        (
            {"stages/1/retry/disruption_limit": 1},
            "retry.disruption_limit: there is no such field; did you mean disruptionLimit?",
        ),
        ({"stages/1/retry/limits": 1}, "spec.stages[1].retry.limits: there is no such field; did you mean limit?"),
        ({"stages/1/parallelism/strategy": "dpp"}, "'ddp' or 'fsdp', not 'dpp'; did you mean ddp?"),
        ({"stages/1/checkpoint/keep": 0}, "spec.stages[1].checkpoint.keep: input should be greater than or equal to 1"),
        ({"stages/1/gate/metric": "caption/en.exact"}, "gives 'caption/en.exact'; they are caption/zh"),
        ({"stages/1/train": {}}, "spec.stages[1].gate.metric: no check of this stage gives 'caption/zh.exact'; it has"),
        ({"stages/1/train/saving": {"keep": 1}}, "spec.stages[1].train.saving: is said by the stage's checkpoint"),
        ({"stages/1/train/compute": {"strategy": "ddp"}}, "train.compute.strategy: is said by the stage's parallelism"),
        (
            {"stages/1/train/optimizer": {"final_rate": 0}},
            "final_rate: there is no such field; did you mean finalRate?",
        ),
        (
            {"stages/1/train/optimizer": {"batch": 6, "accumulate": 4}},
            "spec.stages[1].train.optimizer.batch is 6: it must be a multiple of accumulate (4)",
        ),
        ({"stages/1/train/learn": {"llama": -1}}, "spec.stages[1].train.learn.llama: must be at least 0, not -1"),
        ({"stages/1/train/hangSeconds": float("nan")}, "train.hangSeconds: must be a finite number, not nan"),
        ({"stages/1/train/losses": {"classify": 1}}, "train.labels: the loss classify needs at least one label"),
        ({"stages/1/train/text": {"layout": "shared"}}, "must be one of pad, bucket, pack, share, not 'shared'"),
        (
            {"stages/1/train/text": {"layout": "share"}, "stages/1/train/losses": {"lm": 1, "itc": 1}},
            "spec.stages[1].train.text.layout: share is for the loss lm alone, not itc",
        ),
        ({"suspended": True}, "spec.suspended: there is no such field; did you mean suspend?"),
        ({"model": {}}, "spec.model.checkpoint: is missing"),
        ({"stages": []}, "spec.stages: "),
    ],
)
def test_a_mistake_is_told_with_its_path(at: dict[str, Any], line: str) -> None:
    lines = complaint(at)
    assert all(one.startswith("job.yaml: spec") for one in lines)
    assert any(line in one for one in lines), lines


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            GOOD.replace("      type: align\n", "      type: align\n      type: chat\n"),
            "the key 'type' stands here twice",
        ),
        (GOOD + "---\na: 1\n", "is not YAML"),
        (GOOD.replace("v1alpha1", "v2"), "apiVersion: input should be 'ziya.dev/v1alpha1', not 'ziya.dev/v2'"),
        ("[" * 3000, "is not YAML"),
        ("", "it holds no mapping"),
    ],
)
def test_a_file_that_is_no_job_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(BadConfig) as caught:
        load(path)
    assert sentence in str(caught.value)


# Every field of a recipe.


def leaves(kind: type, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All fields that are not dataclasses themselves, with their types, by path."""
    for name, hint in get_type_hints(kind).items():
        inner = _without_none(hint)
        if is_dataclass(inner):
            yield from leaves(inner, (*path, name))  # type: ignore[arg-type]
        else:
            yield (*path, name), inner


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(one for one in get_args(hint) if one is not type(None))
    return hint


def other(hint: Any, value: Any, path: tuple[str, ...]) -> Any:
    """A valid value of the type that is not `value`."""
    special = {
        ("losses",): {"itg": 0.5, "lm": 2.0},
        ("learn",): {"vision.post_layernorm": 0.25},
        ("labels",): {"x": 3.0},
    }
    special |= {("checks",): [{"data": "held", "kind": "retrieval", "topK": 3, "limit": None}]}
    if path in special:
        return special[path]
    if get_origin(hint) is Literal:
        return next(one for one in get_args(hint) if one != value)
    if get_origin(hint) is tuple:
        return ["v_proj"] if path == ("lora", "targets") else [0.5, 0.75]
    if hint is bool:
        return not value
    if hint is int:
        # The batch stays a multiple of accumulate.
        return 8 if path == ("optimizer", "accumulate") else (value or 0) * 12 + 12
    return 1.0 if path == ("hang_seconds",) else 0.375


def plain(value: Any) -> Any:
    """As YAML would give it."""
    if is_dataclass(value):
        return {to_camel(one.name): plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    return [plain(one) for one in value] if isinstance(value, tuple) else value


def got(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = getattr(value, name)
    return value


ELSEWHERE: dict[tuple[str, ...], tuple[str, ...]] = {
    ("compute", "strategy"): ("parallelism", "strategy"),
    ("saving", "every_steps"): ("checkpoint", "everySteps"),
    ("saving", "every_seconds"): ("checkpoint", "everySeconds"),
    ("saving", "keep"): ("checkpoint", "keep"),
}
PATHS = [(path, hint) for path, hint in leaves(Recipe) if path not in {("stage",), ("data",)}]


def test_the_walk_finds_the_fields() -> None:
    names = {".".join(path) for path, _ in PATHS}
    assert {"lora.targets", "optimizer.betas", "images.cache", "saving.keep", "hang_seconds", "checks"} <= names
    assert len(names) > 35


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("path", "hint"), PATHS, ids=[".".join(path) for path, _ in PATHS])
def test_every_field_is_set_from_yaml_and_nothing_else_changes(
    stage: str, path: tuple[str, ...], hint: Any, tmp_path: Path
) -> None:
    base = STAGES[stage]()
    before = got(base, path) if path[0] != "lora" or base.lora else None
    wanted = other(hint, before, path)
    said: dict[str, Any] = {"name": "it", "type": stage, "data": [{"data": "train"}]}
    outer = ELSEWHERE.get(path, ("train", *map(to_camel, path)))
    place = said
    for part in outer[:-1]:
        place = place.setdefault(part, {})
    place[outer[-1]] = wanted
    if path == ("losses",):
        said["train"]["labels"] = dict(base.labels)
    raw = {**changed(), "spec": {"model": {"checkpoint": "c"}, "stages": [said]}}
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(raw), "utf-8")
    made = recipe_of(load(file).stage("it"))

    now = plain(got(made, path))
    assert now != plain(before)
    assert now == wanted or path == ("checks",)
    assert made.checks == ((Check("held", kind="retrieval", top_k=3),) if path == ("checks",) else base.checks)
    for kept, _ in PATHS:
        changes_too = kept[0] == path[0] == "lora" or (path[-1], kept[-1]) == ("every_seconds", "every_steps")
        if kept != path and not changes_too and (kept[0] != "lora" or base.lora):
            assert got(made, kept) == got(base, kept), kept


def test_a_job_from_python_is_the_same_as_from_a_file() -> None:
    job = TrainingJob.model_validate(changed())
    assert job == parse(changed(), "job.yaml")
