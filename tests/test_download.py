"""A checkpoint out of an object store: the parts that are asked for, and a sentence where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_object_store import store, upload
from training.download import download
from training.errors import BadConfig
from ziya.checkpoint import CheckpointError, read_config, verify_part

__all__ = ["store"]  # a fixture


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_stage_gets_its_own_part(store: str, tiny_reading_checkpoint: Path, tmp_path: Path) -> None:
    upload(tiny_reading_checkpoint, f"{store}/models/tiny")
    for part in ("vision", "qformer", "llama"):
        folder = tmp_path / part
        download(f"{store}/models/tiny/", folder, [part])
        verify_part(folder, part, read_config(folder))
        assert {name.split("/")[0] for name in files(folder)} == {"config.json", part, "qformer"}
    download(f"{store}/models/tiny", tmp_path / "gateway", [])
    assert files(tmp_path / "gateway") == {"config.json", "qformer/tokenizer.json"}


def test_a_second_copy_replaces_what_a_first_one_left(store: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    upload(tiny_checkpoint, f"{store}/tiny")
    weights = next((tiny_checkpoint / "vision").glob("*.safetensors"))
    (tmp_path / "vision").mkdir()
    (tmp_path / "vision" / weights.name).write_bytes(b"cut short")
    download(f"{store}/tiny", tmp_path, ["vision"])
    verify_part(tmp_path, "vision", read_config(tmp_path))


def test_what_is_no_checkpoint_is_refused(store: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    upload(tiny_checkpoint, f"{store}/tiny")
    with pytest.raises(BadConfig, match=r"no config\.json"):
        download(f"{store}/odd", tmp_path, ["vision"])
    with pytest.raises(CheckpointError, match="not the config of a ziya-visual checkpoint"):
        download(f"{store}/tiny/llama", tmp_path, [])
    with pytest.raises(BadConfig, match="no speech/ part"):
        download(f"{store}/tiny", tmp_path, ["speech"])
    with pytest.raises(BadConfig, match="nowhere"):
        download("nowhere://a/b", tmp_path, [])


def test_the_command_copies_and_says_what_is_wrong(tiny_checkpoint: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "training.download"]
    source, target = tiny_checkpoint.as_uri(), tmp_path / "copy"
    done = subprocess.run([*argv, source, str(target), "qformer"], timeout=60, check=False)
    assert done.returncode == 0
    assert read_config(target) == read_config(tiny_checkpoint)
    wrong = subprocess.run(
        [*argv, f"{source}/llama", str(target)], capture_output=True, text=True, timeout=60, check=False
    )
    assert wrong.returncode == 1
    assert wrong.stderr.startswith(f"{source}/llama cannot be fetched: ")
    assert "Traceback" not in wrong.stderr
