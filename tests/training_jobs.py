"""Small jobs for tests of whole training runs: a random checkpoint, a few drawn pictures, real processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

from tests.tiny import build_checkpoint
from training.commit import newest
from training.data.writer import write_dataset
from ziya.checkpoint import fingerprint, read_config

NAMES = ("cat", "dog", "the cat", "a dog", "that", "hat")
STEPS = 8


def picture(seed: int, size: int = 32) -> bytes:
    draw = random.Random(seed)
    image = Image.new("RGB", (size, size), tuple(draw.randrange(256) for _ in range(3)))
    image.paste(tuple(draw.randrange(256) for _ in range(3)), (4, 4, draw.randrange(8, size), draw.randrange(8, size)))
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def fields(number: int) -> dict[str, Any]:
    name = NAMES[number % len(NAMES)]
    return {
        "group": name,
        "caption": {"en": name, "zh": "一只猫" if number % 2 else "一只狗"},
        "labels": {"concept": name},
        "dialogue": {"turns": [{"role": "user", "text": "what"}, {"role": "assistant", "text": name}]},
    }


def make_folder(folder: Path, *, samples: int = 40, broken: Sequence[int] = (), dropout: float = 0.1) -> Path:
    """`data/` and `initial/`; the pictures numbered in `broken` are cut off."""
    files = [picture(number) for number in range(samples)]
    files = [file[:60] if number in broken else file for number, file in enumerate(files)]
    write_dataset(folder / "data", ((fields(n), [file]) for n, file in enumerate(files)), name="data", shard_samples=16)
    build_checkpoint(folder / "initial", retrieval=True)
    config = folder / "initial" / "qformer" / "config.json"
    raw = {**json.loads(config.read_text()), "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config.write_text(json.dumps(raw))
    whole = read_config(folder / "initial")
    prints = {**whole.fingerprints, "qformer": fingerprint(config.parent)}
    (folder / "initial" / "config.json").write_text(replace(whole, fingerprints=prints).to_json())
    return folder


def write_job(folder: Path, *stages: Mapping[str, Any], **spec: Any) -> Path:
    job = {
        "apiVersion": "ziya.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "test"},
        "spec": {"model": {"checkpoint": "initial"}, "output": {"path": str(folder)}, "stages": list(stages), **spec},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def stage(kind: str, *, name: str | None = None, **train: Any) -> dict[str, Any]:
    """A stage of few steps, in float32 and one loader process less than anywhere else: none."""
    optimizer = {"steps": STEPS, "batch": 8, "rate": 1e-3, "finalRate": 1e-4, "warmupSteps": 2}
    train = {"compute": {"precision": "float32", "workers": 0}, **train}
    train["optimizer"] = {**optimizer, **train.get("optimizer", {})}
    sources = [{"data": "data", "language": language} for language in ("en", "zh")]
    return {
        "name": name or kind,
        "type": kind,
        "data": sources,
        "train": train,
        "checkpoint": {"everySteps": 2, "keep": 2},
    }


def start(job: Path, stage_name: str, output: Path, attempt: int, processes: int = 1) -> subprocess.Popen[str]:
    place = [str(job), "--stage", stage_name, "--output", str(output), "--attempt", str(attempt)]
    many = ["training.launch", *place, "--processes", str(processes)]
    return subprocess.Popen(
        [sys.executable, "-m", *(many if processes > 1 else ["training.run", *place])],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(job: Path, stage_name: str, output: Path, attempt: int = 1, processes: int = 1) -> tuple[int, str]:
    """Exit code and everything it said."""
    process = start(job, stage_name, output, attempt, processes)
    said, _ = process.communicate()
    return process.returncode, said


def reach(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Waits until the run in `folder` has logged `step`; it must still be running."""
    log = folder / "metrics.jsonl"
    while not (log.is_file() and f'"step": {step},' in log.read_text()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def kill(process: subprocess.Popen[str]) -> None:
    """All of its processes, at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint of a stage's folder, by name."""
    published = newest(folder / "checkpoints")
    assert published is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is one process
        return dict(flat(_load_state_dict_from_keys(storage_reader=FileSystemReader(published.folder))))


def flat(value: Any, name: str = "") -> list[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        return [(name, value)]
    return [one for key, inner in value.items() for one in flat(inner, f"{name}/{key}")]
