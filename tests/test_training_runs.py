"""Whole runs in processes of their own: killed, stopped and resumed ones end as if nothing had happened."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from tests.training_jobs import STEPS, kill, make_folder, reach, run, stage, start, weights, write_job
from training.json_log import read
from ziya.checkpoint import read_config
from ziya.model.llama import load_llama
from ziya.model.qformer import QFormer

PRETRAIN = stage("pretrain", learn={"qformer": 1.0, "vision.post_layernorm": 1.0})
REMEMBER = stage("pretrain", name="remember", learn={"qformer": 1.0}, negativeMemory=2)
ALIGN = stage("align", learn={"qformer": 1.0, "projection": 1.0}, text={"rowPositions": 64})
INSTRUCT = stage("instruct", lora={"rank": 2, "dropout": 0.1}, text={"rowPositions": 64}, optimizer={"ema": 0.9})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of three stages; tests give their runs an output folder of their own."""
    folder = make_folder(tmp_path_factory.mktemp("job"))
    write_job(folder, PRETRAIN, ALIGN, INSTRUCT)
    return folder


def output(folder: Path, tmp_path: Path) -> Path:
    """An empty output folder with the job's data and first checkpoint."""
    for name in ("data", "initial"):
        (tmp_path / name).symlink_to(folder / name)
    return tmp_path


def same(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("name", "processes"),
    [
        pytest.param("pretrain", 1, marks=pytest.mark.slow),
        pytest.param("pretrain", 2, marks=pytest.mark.slow),
        pytest.param("remember", 1, marks=pytest.mark.slow),
        ("remember", 2),
    ],
)
def test_a_run_that_is_killed_again_and_again_ends_bit_for_bit_like_an_undisturbed_one(
    folder: Path, tmp_path: Path, name: str, processes: int
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    quiet, killed = output(folder, tmp_path / "one"), output(folder, tmp_path / "two")
    job = write_job(tmp_path, PRETRAIN if name == "pretrain" else REMEMBER)
    assert run(job, name, quiet, processes=processes)[0] == 0
    for attempt, step in ((1, 3), (2, 6)):
        process = start(job, name, killed, attempt, processes)
        reach(killed / name, step, process)
        kill(process)
    code, said = run(job, name, killed, 3, processes)

    assert code == 0, said
    same(quiet / name, killed / name)
    assert read_config(quiet / name / "model").fingerprints == read_config(killed / name / "model").fingerprints


def test_a_run_resumed_on_two_processes_sees_the_same_samples_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    make_folder(tmp_path / "job", dropout=0.0)
    job = write_job(tmp_path / "job", stage("pretrain", learn={"qformer": 1.0}, negativeMemory=2))
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    alone, changed = output(tmp_path / "job", tmp_path / "one"), output(tmp_path / "job", tmp_path / "many")
    assert run(job, "pretrain", alone)[0] == 0
    process = start(job, "pretrain", changed, 1)
    reach(changed / "pretrain", 4, process)
    kill(process)
    code, said = run(job, "pretrain", changed, 2, processes=2)

    assert code == 0, said
    states = [
        json.loads((place / "pretrain" / "checkpoints" / f"step-{STEPS:09d}" / "state.json").read_text())
        for place in (alone, changed)
    ]
    assert states[0] == states[1]
    first, second = weights(alone / "pretrain"), weights(changed / "pretrain")
    apart = {name: float((w - second[name]).abs().max()) for name, w in first.items() if name.startswith("/weights")}
    assert {name: far for name, far in apart.items() if far > 1e-6} == {}


def test_samples_that_share_a_picture_learn_as_if_apart_also_killed_and_on_two_processes(tmp_path: Path) -> None:
    make_folder(tmp_path / "job", dropout=0.0)
    places, lines = {}, {}
    for name, layout in (("apart", "pad"), ("shared", "share"), ("killed", "share")):
        (tmp_path / name).mkdir()
        places[name] = output(tmp_path / "job", tmp_path / name)
        text, learn = {"layout": layout, "rowPositions": 256}, {"qformer": 1.0, "projection": 1.0}
        made = stage("align", learn=learn, text=text, optimizer={"accumulate": 1})
        made["data"] = [{**source, "samplesEach": 2} for source in made["data"]]
        job = write_job(tmp_path / name, made)
        if name == "killed":
            process = start(job, "align", places[name], 1)
            reach(places[name] / "align", 3, process)
            kill(process)
        code, said = run(job, "align", places[name], 2, processes=2 if name == "killed" else 1)
        assert code == 0, said
        log = read(places[name] / "align" / "metrics.jsonl")
        lines[name] = [one for one in log if one["kind"] == "step" and (name != "killed" or one["attempt"] == 2)]

    first = weights(places["apart"] / "align")
    for name in ("shared", "killed"):
        same_steps = lines["apart"][-len(lines[name]) :]
        for kind in ("useful_tokens", "supervised_tokens", "samples"):
            assert [one[kind] for one in lines[name]] == [one[kind] for one in same_steps]
        assert [one["losses"]["lm"] for one in lines[name]] == pytest.approx(
            [one["losses"]["lm"] for one in same_steps], rel=1e-6
        )
        assert all(one["positions"] < other["positions"] for one, other in zip(lines[name], same_steps, strict=True))
        second = weights(places[name] / "align")
        apart = {key: float((w - second[key]).abs().max()) for key, w in first.items() if key.startswith("/weights")}
        assert {key: far for key, far in apart.items() if far > 1e-5} == {}


def test_sigterm_saves_and_exits_75_and_the_next_attempt_goes_on(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    quiet, stopped = output(folder, tmp_path / "one"), output(folder, tmp_path / "two")
    assert run(folder / "job.yaml", "align", quiet)[0] != 0  # there is no pretrained model yet
    job = write_job(tmp_path, ALIGN)
    assert run(job, "align", quiet, 2)[0] == 0
    process = start(job, "align", stopped, 1)
    reach(stopped / "align", 1, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0]

    assert process.returncode == 75, said
    verdict = json.loads((stopped / "align" / "exit.json").read_text())
    assert verdict["code"] == 75
    assert "its checkpoint is published" in verdict["reason"]
    assert run(job, "align", stopped, 2)[0] == 0
    same(quiet / "align", stopped / "align")


def test_lora_is_merged_into_what_serving_loads_and_kept_as_an_adapter(folder: Path, tmp_path: Path) -> None:
    place = output(folder, tmp_path)
    job = write_job(tmp_path, INSTRUCT)
    code, said = run(job, "instruct", place)
    assert code == 0, said
    model = place / "instruct" / "model"
    before, after = load_llama(folder / "initial"), load_llama(model)

    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(before.tensors[name], after.tensors[name])
    assert torch.equal(before.tensors["model.norm.weight"].bfloat16(), after.tensors["model.norm.weight"].bfloat16())
    assert (place / "instruct" / "adapter" / "adapter_config.json").is_file()
    assert read_config(model).fingerprints["vision"] == read_config(folder / "initial").fingerprints["vision"]
    assert QFormer.load(model).retrieval


@pytest.mark.parametrize(
    ("precision", "apart"), [("float32", 1e-5), pytest.param("bfloat16", 5e-2, marks=pytest.mark.slow)]
)
def test_sharded_weights_train_evaluate_and_export_like_whole_ones(
    folder: Path, tmp_path: Path, precision: str, apart: float
) -> None:
    """Sharded, pictures are shared in a row too, and activations are computed again on the way back."""
    losses = []
    for strategy, layout, again in (("ddp", "pad", False), ("fsdp", "share", True)):
        (tmp_path / strategy).mkdir()
        place = output(folder, tmp_path / strategy)
        made = stage(
            "align",
            learn={"projection": 1.0, "llama": 1.0},
            checks=[{"data": "data", "limit": 8}],
            text={"layout": layout, "rowPositions": 256},
            compute={"precision": precision, "workers": 0, "checkpointActivations": again},
            optimizer={"accumulate": 1},
        )
        made["data"] = [{**source, "samplesEach": 2} for source in made["data"]]
        made["parallelism"] = {"procsPerNode": 2, "strategy": strategy}
        code, said = run(write_job(place, made), "align", place, processes=2)
        assert code == 0, said
        assert "caption/en.exact" in json.loads((place / "align" / "evaluation.json").read_text())["metrics"]
        assert load_llama(place / "align" / "model").config.name == "ziya-test"
        steps = [one for one in read(place / "align" / "metrics.jsonl") if one["kind"] == "step"]
        losses.append([one["losses"]["lm"] for one in steps])
        assert (steps[0]["positions"] < steps[0]["useful_tokens"]) == (layout == "share")
    assert losses[1] == pytest.approx(losses[0], abs=apart)
    assert abs(losses[0][0] - losses[0][-1]) > apart


def test_the_log_has_every_step_with_its_losses_by_source(folder: Path, tmp_path: Path) -> None:
    place = output(folder, tmp_path)
    code, said = run(write_job(tmp_path, ALIGN), "align", place)
    assert code == 0, said
    steps = [one for one in read(place / "align" / "metrics.jsonl") if one["kind"] == "step"]

    assert [one["step"] for one in steps] == list(range(1, STEPS + 1))
    assert all(set(one["by_source"]) <= {"caption/en", "caption/zh"} for one in steps)
    assert all(one["losses"]["total"] == pytest.approx(one["losses"]["lm"]) for one in steps)
    assert all(0 < one["supervised_tokens"] < one["useful_tokens"] <= one["positions"] for one in steps)
    assert f"align {STEPS}/{STEPS}" in said


def test_bad_samples_are_named_in_the_report(tmp_path: Path) -> None:
    make_folder(tmp_path, broken=(3, 17))
    code, said = run(write_job(tmp_path, stage("align", badShare=0.5)), "align", tmp_path)
    report = json.loads((tmp_path / "align" / "bad-samples.json").read_text())

    assert code == 0, said
    assert report["bad"] > 0
    assert set(report["examples"]["bad image"]) <= {"shard-00000:3", "shard-00001:1"}


def test_too_many_bad_samples_end_the_run_with_42_and_a_reason(tmp_path: Path) -> None:
    make_folder(tmp_path, broken=range(0, 40, 2))
    code, said = run(write_job(tmp_path, stage("align", optimizer={"batch": 128})), "align", tmp_path)

    assert code == 42
    assert "samples cannot be used" in said
    assert "bad image" in said


def test_a_loss_that_is_not_a_number_ends_the_run_and_names_the_step(folder: Path, tmp_path: Path) -> None:
    place = output(folder, tmp_path)
    job = write_job(tmp_path, stage("align", optimizer={"rate": 1e30, "finalRate": 1e30, "warmupSteps": 0}))
    code, said = run(job, "align", place)

    assert code == 1
    assert "align: step" in said
    assert json.loads((place / "align" / "exit.json").read_text())["code"] == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"images": {"cache": "features"}, "learn": {"vision": 1.0, "qformer": 1.0, "projection": 1.0}}, "freeze it"),
        ({"optimizer": {"batch": 9, "accumulate": 2}}, "optimizer.batch is 9"),
        ({"learn": {"llama.nothing": 1.0}}, "llama.nothing"),
    ],
)
def test_a_recipe_that_cannot_run_ends_with_42_and_a_sentence(
    folder: Path, tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    place = output(folder, tmp_path)
    code, said = run(write_job(tmp_path, stage("align", **changes)), "align", place)

    assert code == 42
    assert sentence in said
    assert "Traceback" not in said


def test_cached_features_train_like_pictures(folder: Path, tmp_path: Path) -> None:
    losses = []
    for cache in ("none", "features"):
        (tmp_path / cache).mkdir()
        place = output(folder, tmp_path / cache)
        made = stage("align", images={"cache": cache, "augment": "none"}, learn={"projection": 1.0})
        code, said = run(write_job(place, made), "align", place)
        assert code == 0, said
        losses.append([one["losses"]["lm"] for one in read(place / "align" / "metrics.jsonl") if one["kind"] == "step"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
