"""Stages of type eval, and gates: what a model must reach before the job goes on. Real processes, real checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training_jobs import make_folder, run, stage, weights, write_job
from training.data.shards import Dataset
from training.errors import BadConfig, GateFailed
from training.gate import enforce
from training.job import Gate
from training.local import LocalRun
from training.model import VisualLanguageModel
from training.stage_folder import StageFolder
from ziya.images import ImageLimits, decode

CHECKS = [{"data": "data", "task": "caption", "language": "en"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data and a checkpoint; jobs go to subfolders of their own."""
    return make_folder(tmp_path_factory.mktemp("gate"), samples=12)


def examination(name: str, gate: float | None = None, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "type": "eval", "train": {"checks": CHECKS}, **fields}
    return made if gate is None else {**made, "gate": {"metric": "caption/en.exact", "atLeast": gate}}


def test_a_gate_lets_pass_what_reaches_it_and_names_what_does_not() -> None:
    gate = Gate(metric="a.exact", at_least=0.5)
    enforce(None, {})
    enforce(gate, {"a.exact": 0.5})
    with pytest.raises(GateFailed, match=r"a\.exact is 0\.25, it must be at least 0\.5"):
        enforce(gate, {"a.exact": 0.25})
    with pytest.raises(GateFailed, match="nan"):
        enforce(gate, {"a.exact": float("nan")})
    with pytest.raises(BadConfig, match=r"'a\.exact' was not measured, only b\.exact"):
        enforce(gate, {"b.exact": 1.0})


def test_an_eval_stage_measures_the_model_of_the_stage_it_needs(folder: Path) -> None:
    short: dict[str, Any] = {"optimizer": {"steps": 1}, "checks": CHECKS}
    stages = [stage("align", **short), stage("align", name="later", **short)]
    job = write_job(folder, *stages, examination("first", needs=["align"]), examination("last"))
    said: list[str] = []
    LocalRun(job, folder, said.append).run()
    for name, measured in (("first", "align"), ("last", "later")):
        found, known = (StageFolder(folder / one).summary()["metrics"] for one in (name, measured))
        assert found == known
        assert json.loads((folder / name / "evaluation.json").read_text())["metrics"] == found
        assert not (folder / name / "model").exists()
    LocalRun(job, folder, said.append).run()
    assert "last: done before" in said


def test_a_failed_gate_ends_the_job_with_42_and_its_stage_is_not_done(folder: Path, tmp_path: Path) -> None:
    for link in ("data", "initial"):
        (tmp_path / link).symlink_to(folder / link)
    job = write_job(tmp_path, examination("exam", gate=1.5), examination("never"))
    code, said = run(job, "exam", tmp_path)
    assert code == 42
    assert "caption/en.exact is" in said
    assert StageFolder(tmp_path / "exam").verdict(1) is not None
    assert not StageFolder(tmp_path / "exam").is_done
    with pytest.raises(BadConfig, match=r"exam: gate: caption/en\.exact is .* at least 1\.5"):
        LocalRun(job, tmp_path, print).run()
    assert not (tmp_path / "never").exists()


def test_a_gate_of_a_training_stage_keeps_what_comes_after_from_it(folder: Path, tmp_path: Path) -> None:
    for link in ("data", "initial"):
        (tmp_path / link).symlink_to(folder / link)
    gate = {"metric": "caption/en.exact", "atLeast": 1.5}
    made = {**stage("align", optimizer={"steps": 1}, checks=CHECKS), "gate": gate}
    for attempt in (1, 2):  # the second finds a finished run, and has to measure it again
        code, said = run(write_job(tmp_path, made), "align", tmp_path, attempt)
        assert code == 42
        assert "it must be at least 1.5" in said
        assert not StageFolder(tmp_path / "align").is_done


def test_an_eval_stage_without_checks_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "initial").symlink_to(folder / "initial")
    code, said = run(write_job(tmp_path, {"name": "exam", "type": "eval"}), "exam", tmp_path)
    assert code == 42
    assert "has no checks" in said


def test_labels_are_examined_by_the_heads_that_the_stage_learns(folder: Path, tmp_path: Path) -> None:
    for link in ("data", "initial"):
        (tmp_path / link).symlink_to(folder / link)
    checks = [{"data": "data", "kind": "labels", "field": "concept"}]
    job = write_job(
        tmp_path, stage("vision", labels={"concept": 1.0}, optimizer={"steps": 4, "ema": None}, checks=checks)
    )
    code, said = run(job, "vision", tmp_path)
    assert code == 0, said
    learnt = {name.rpartition("/")[2]: tensor for name, tensor in weights(tmp_path / "vision").items()}
    model = VisualLanguageModel.load(folder / "initial", parts={"vision"}).eval()
    wanted = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    model.load_state_dict({name.removeprefix("model."): learnt[name] for name in wanted})
    dataset = Dataset.open(str(folder / "data"))
    right = 0
    for number in range(len(dataset)):
        pixels = model.preprocessing(decode(dataset.image(number, 0), ImageLimits()))
        mean = model.features(torch.from_numpy(pixels)[None]).mean(1)
        scores = mean @ learnt["label_heads.concept.weight"].T + learnt["label_heads.concept.bias"]
        right += dataset.labels["concept"][int(scores.argmax())] == dataset.record(number).fields["labels"]["concept"]
    found = StageFolder(tmp_path / "vision").summary()["metrics"]
    assert found["labels.concept.top1"] == pytest.approx(right / len(dataset))
    assert found["labels.concept.top5"] >= found["labels.concept.top1"]


def test_a_check_of_labels_needs_the_stage_that_learns_them(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(folder / "data")
    (tmp_path / "initial").symlink_to(folder / "initial")
    checks = [{"data": "data", "kind": "labels", "field": "concept"}]
    code, said = run(
        write_job(tmp_path, {"name": "exam", "type": "eval", "train": {"checks": checks}}), "exam", tmp_path
    )
    assert code == 42
    assert "nothing here learns labels" in said


def test_a_checkpoint_s_url_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    job = write_job(tmp_path, examination("exam"))
    job.write_text(job.read_text().replace("checkpoint: initial", "checkpoint: s3://bucket/model"))
    code, said = run(job, "exam", tmp_path)
    assert code == 42
    assert "'s3://bucket/model': a checkpoint has to lie in a folder" in said
