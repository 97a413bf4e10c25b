"""TrainingJob files: what is wrong is named with its place, and a stage maps onto its recipe field by field."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic.alias_generators import to_camel

from training.errors import BadConfig
from training.job import TRAINS, Stage, TrainingJob, load
from training.override import override, recipe_of
from training.recipe import Check, Lora, Recipe, Source
from training.stages import STAGES

SAMPLE = Path(__file__).parents[1] / "deploy" / "samples" / "tiny.yaml"
SOURCES = [{"data": "d", "language": "zh", "ratio": 2}]


def job(*stages: dict[str, Any], **spec: Any) -> dict[str, Any]:
    made = list(stages) or [{"name": "align", "type": "align", "data": SOURCES}]
    return {
        "apiVersion": "ziya.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "j"},
        "spec": {"model": {"checkpoint": "initial"}, "stages": made, **spec},
    }


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value))
    return path


def recipe(**stage: Any) -> Recipe:
    return recipe_of(Stage.model_validate({"name": "s", "type": "align", "data": SOURCES, **stage}))


def test_the_sample_job_loads_and_every_training_stage_gives_a_recipe() -> None:
    sample = load(SAMPLE)
    trained = [stage for stage in sample.spec.stages if stage.type in TRAINS]

    assert [stage.type for stage in trained] == ["vision", "pretrain", "align", "instruct", "chat"]
    assert all(recipe_of(stage).data for stage in trained)


def test_what_was_read_can_be_written_and_read_again(tmp_path: Path) -> None:
    first = load(SAMPLE)
    again = write(tmp_path / "job.yaml", first.model_dump(mode="json", by_alias=True))
    assert load(again) == first


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "holds no mapping"),
        ({**job(), "kind": "Job"}, "kind: input should be 'TrainingJob'"),
        (job({"name": "A", "type": "align", "data": SOURCES}), "spec.stages[0].name"),
        (job({"name": "a", "type": "algin", "data": SOURCES}), "spec.stages[0].type"),
        (job({"name": "a", "type": "align", "data": SOURCES, "trian": {}}), "no such field; did you mean train?"),
        (job({"name": "a", "type": "align"}), "needs data"),
        (job({"name": "a", "type": "data"}), "needs a builder"),
        (job({"name": "a", "type": "align", "data": [{"data": "d", "ratio": 0}]}), "spec.stages[0].data[0].ratio"),
        (job({"name": "a", "type": "align", "data": [{"data": "d", "task": "vqq"}]}), "there is no task 'vqq'"),
        (job({"name": "a", "type": "align", "data": [{"data": "d", "language": "fr"}]}), "there is no language 'fr'"),
        (job({"name": "a", "type": "align", "data": SOURCES, "needs": ["b"]}), "needs 'b'"),
        (job(*[{"name": "a", "type": "align", "data": SOURCES}] * 2), "two stages are called 'a'"),
        (job(suspended=True), "spec.suspended: there is no such field; did you mean suspend?"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place_and_the_reason(tmp_path: Path, value: Any, sentence: str) -> None:
    path = write(tmp_path / "job.yaml", value)
    with pytest.raises(BadConfig) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert sentence in str(caught.value)


def test_a_missing_file_and_a_missing_stage_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"nothing\.yaml"):
        load(tmp_path / "nothing.yaml")
    with pytest.raises(BadConfig, match="no stage 'chat'; its stages are align"):
        TrainingJob.model_validate(job()).stage("chat")


@pytest.mark.parametrize("name", STAGES)
def test_every_field_of_a_recipe_can_be_set_by_its_name(name: str) -> None:
    base = STAGES[name]()
    for field in fields(Recipe):
        if field.name in ("stage", "data"):
            continue
        value = getattr(base, field.name)
        changed = changes_of(value, field.name)
        assert getattr(override(base, {to_camel(field.name): changed}, "train"), field.name) != value


def changes_of(value: Any, name: str) -> Any:
    """Another value for a field, as YAML would give it."""
    special = {"lora": {"rank": 3}, "checks": [{"data": "d", "kind": "retrieval"}], "losses": {"itg": 2}}
    special |= {"learn": {"qformer": 0.25}, "labels": {"kind": 1}}
    if name in special:
        return special[name]
    if is_dataclass(value):
        first = next(one for one in fields(value) if isinstance(getattr(value, one.name), int | float))
        before = getattr(value, first.name)
        return {to_camel(first.name): (not before) if isinstance(before, bool) else before + 1}
    return value + 1


def test_nested_fields_keep_what_is_not_set() -> None:
    made = recipe(train={"optimizer": {"steps": 7, "rate": "2e-4"}, "lora": {"rank": 4, "targets": ["q_proj"]}})
    base = STAGES["align"]()

    assert made.optimizer.steps == 7
    assert made.optimizer.rate == 2e-4
    assert made.optimizer.batch == base.optimizer.batch
    assert made.lora == Lora(rank=4, targets=("q_proj",))
    assert made.data == (Source("d", language="zh", ratio=2.0),)
    assert recipe(type="instruct", train={"lora": None}).lora is None


def test_checks_and_checkpoint_and_parallelism_reach_the_recipe() -> None:
    made = recipe(
        train={"checks": [{"data": "held", "kind": "retrieval", "language": "zh", "topK": 4}]},
        checkpoint={"everySeconds": 60, "keep": 5},
        parallelism={"procsPerNode": 2, "strategy": "fsdp"},
    )
    assert made.checks == (Check("held", kind="retrieval", language="zh", top_k=4),)
    assert (made.saving.every_steps, made.saving.every_seconds, made.saving.keep) == (None, 60.0, 5)
    assert made.compute.strategy == "fsdp"


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ({"optimiser": {}}, "s.train.optimiser: there is no such field; did you mean optimizer?"),
        ({"optimizer": {"stepz": 1}}, "s.train.optimizer.stepz: there is no such field; did you mean steps?"),
        ({"optimizer": {"steps": "many"}}, "s.train.optimizer.steps: must be int, not 'many'"),
        ({"optimizer": {"steps": True}}, "must be int, not True"),
        ({"optimizer": {"betas": [0.9]}}, "must have 2 values, not 1"),
        ({"optimizer": {"batch": 0}}, "s.train.optimizer.batch: must be at least 1"),
        ({"text": {"captionGroups": 0}}, "s.train.text.captionGroups: must be at least 1"),
        ({"text": {"layout": "packed"}}, "must be one of pad, bucket, pack"),
        ({"text": 3}, "s.train.text: must be a mapping"),
        ({"losses": {"lmm": 1}}, "there is no loss 'lmm'"),
        ({"losses": {}}, "needs at least one of"),
        ({"learn": {"vit": 1}}, "there is no part 'vit'"),
        ({"checks": [{"kind": "retrieval"}]}, "s.train.checks[0].data: is missing"),
    ],
)
def test_a_wrong_override_is_refused_with_its_path(train: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadConfig) as caught:
        recipe(train=train)
    assert sentence in str(caught.value)


def test_an_unknown_recipe_is_named() -> None:
    with pytest.raises(BadConfig, match="there is no recipe 'fast'"):
        recipe(recipe="fast")
