"""A checkpoint folder is written whole or not at all, and what does not fit is refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from ziya.checkpoint import CheckpointError, fingerprint, read_config
from ziya.model.atomic import replace_folder
from ziya.model.llama import load_llama
from ziya.model.qformer import QFormer
from ziya.model.vision import VisionEncoder
from ziya.model.weights import save_checkpoint

LOADERS: dict[str, Callable[[Path], Any]] = {
    "vision": VisionEncoder.load,
    "qformer": QFormer.load,
    "llama": load_llama,
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_checkpoint(tmp_path_factory.mktemp("built") / "checkpoint")


@pytest.fixture
def checkpoint(built: Path, tmp_path: Path) -> Path:
    """A copy that the test may spoil."""
    return Path(shutil.copytree(built, tmp_path / "checkpoint"))


def accept(checkpoint: Path) -> None:
    """Writes the parts' present fingerprints, as somebody who edits a checkpoint on purpose would."""
    config = read_config(checkpoint)
    prints = {part: fingerprint(checkpoint / part) for part in LOADERS}
    (checkpoint / "config.json").write_text(replace(config, fingerprints=prints).to_json())


def edit(path: Path, **changes: Any) -> None:
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in (raw | changes).items() if value is not ...}))


# ── atomic saving ────────────────────────────────────────────────────────────────────────────────────────────

SAVER = """
import json
import sys
from functools import partial
from pathlib import Path
from ziya.checkpoint import read_config
from ziya.model import weights
from ziya.model.tensors import Lazy, Source, lazy, locate

source, target = Path(sys.argv[1]), Path(sys.argv[2])

def stop(read):
    print("midway", flush=True)
    sys.stdin.read()
    return read()

tensors = lazy(locate(source / "llama")).sources
last = sorted(tensors)[-1]
tensors[last] = Source(tensors[last].shape, partial(stop, tensors[last].read))
llama = weights.LlamaPart(
    json.loads((source / "llama/config.json").read_text()), Lazy(tensors),
    lazy(locate(source / "llama", "projection.safetensors")), (source / "llama/tokenizer.json").read_text(),
)
weights.save_checkpoint(
    target, config=read_config(source), vision=source / "vision", qformer=source / "qformer", llama=llama,
    shard_bytes=50_000,
)
"""


def start_saver(source: Path, target: Path) -> subprocess.Popen[str]:
    """Saves `source` over `target` in another process, and stops before the last tensor."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(source), str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "midway\n"
    return process


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_checkpoint(tmp_path_factory.mktemp("other") / "checkpoint", seed=1)


def test_a_save_killed_midway_leaves_the_old_checkpoint(checkpoint: Path, other: Path) -> None:
    before = read_config(checkpoint)
    with start_saver(other, checkpoint) as process:
        process.kill()
    assert process.returncode == -9
    assert read_config(checkpoint) == before
    for load in LOADERS.values():
        load(checkpoint)
    # The next save removes what the killed one left, and wins.
    assert len(list(checkpoint.parent.iterdir())) == 2
    tiny.build_checkpoint(checkpoint, seed=1)
    assert read_config(checkpoint) == read_config(other)
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_a_save_killed_midway_leaves_nothing_where_nothing_was(tmp_path: Path, other: Path) -> None:
    with start_saver(other, tmp_path / "new") as process:
        process.kill()
    assert not (tmp_path / "new").exists()


def test_a_save_that_ends_replaces_the_old_checkpoint(checkpoint: Path, other: Path) -> None:
    process = start_saver(other, checkpoint)
    process.communicate("go on\n")
    assert process.returncode == 0
    for name, load in LOADERS.items():
        assert load(checkpoint).fingerprint == fingerprint(checkpoint / name)
    assert torch.equal(load_llama(checkpoint).tensors["lm_head.weight"], load_llama(other).tensors["lm_head.weight"])
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_a_failed_block_leaves_no_draft(tmp_path: Path) -> None:
    with suppress(RuntimeError), replace_folder(tmp_path / "folder") as draft:
        (draft / "file").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_reader_never_finds_the_folder_missing(tmp_path: Path) -> None:
    """Replaced two hundred times by another process while it is read."""
    code = """
import sys
from pathlib import Path
from ziya.model.atomic import replace_folder
for number in range(201):
    with replace_folder(Path(sys.argv[1])) as draft:
        (draft / "number").write_text(str(number))
    print(number, flush=True)
"""
    target = tmp_path / "folder"
    with subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seen = []
        while process.poll() is None:
            # A folder handle keeps to one version, as a path does not.
            assert target.is_dir()
            seen.append(len(list(target.iterdir())))
    assert process.returncode == 0
    assert (target / "number").read_text() == "200"
    assert set(seen) <= {0, 1}


def test_equal_weights_have_equal_fingerprints(built: Path, tmp_path: Path, other: Path) -> None:
    again = tiny.build_checkpoint(tmp_path / "again")
    assert read_config(again).fingerprints == read_config(built).fingerprints
    assert not set(read_config(other).fingerprints.values()) & set(read_config(built).fingerprints.values())


def test_every_user_may_read_a_checkpoint(built: Path) -> None:
    files = [path for path in built.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path.name for path in files if path.stat().st_mode & 0o044 != 0o044] == []


def test_parts_are_taken_over_as_folders(built: Path, tmp_path: Path) -> None:
    config = save_checkpoint(
        tmp_path / "copy",
        config=replace(read_config(built), name="copy"),
        vision=built / "vision",
        qformer=built / "qformer",
        llama=built / "llama",
    )
    assert config == replace(read_config(built), name="copy")
    for load in LOADERS.values():
        load(tmp_path / "copy")


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("part", LOADERS)
def test_a_missing_part_is_named(checkpoint: Path, part: str) -> None:
    shutil.rmtree(checkpoint / part)
    with pytest.raises(CheckpointError, match=f"has no {part}/ part"):
        LOADERS[part](checkpoint)


@pytest.mark.parametrize("part", LOADERS)
def test_a_foreign_part_is_named(checkpoint: Path, other: Path, part: str) -> None:
    shutil.rmtree(checkpoint / part)
    shutil.copytree(other / part, checkpoint / part)
    with pytest.raises(CheckpointError, match=rf"{part} is not the part that .*config\.json was written for"):
        LOADERS[part](checkpoint)


TENSORS = {
    "vision": ("vision/model.safetensors", "encoder.layers.1.mlp.fc2.weight"),
    "qformer": ("qformer/model.safetensors", "query_tokens"),
    "llama": ("llama/model.safetensors", "model.layers.0.self_attn.o_proj.weight"),
    "projection": ("llama/projection.safetensors", "language_projection.bias"),
}


@pytest.mark.parametrize("which", TENSORS)
def test_a_missing_tensor_is_named(checkpoint: Path, which: str) -> None:
    file, name = TENSORS[which]
    tensors = load_file(checkpoint / file)
    del tensors[name]
    save_file(tensors, checkpoint / file)
    accept(checkpoint)
    with pytest.raises(CheckpointError, match=f"tensor {name} missing"):
        LOADERS["llama" if which == "projection" else which](checkpoint)


@pytest.mark.parametrize("which", TENSORS)
def test_a_wrong_shape_is_named(checkpoint: Path, which: str) -> None:
    file, name = TENSORS[which]
    tensors = load_file(checkpoint / file)
    tensors[name] = torch.zeros(3, 5)
    save_file(tensors, checkpoint / file)
    accept(checkpoint)
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[3, 5\], expected \["):
        LOADERS["llama" if which == "projection" else which](checkpoint)


@pytest.mark.parametrize("which", TENSORS)
def test_a_tensor_of_another_model_is_named(checkpoint: Path, which: str) -> None:
    file, _ = TENSORS[which]
    save_file({**load_file(checkpoint / file), "lora_A.weight": torch.zeros(1)}, checkpoint / file)
    accept(checkpoint)
    with pytest.raises(CheckpointError, match=r"tensor lora_A\.weight not of this model"):
        LOADERS["llama" if which == "projection" else which](checkpoint)


@pytest.mark.parametrize("part", LOADERS)
@pytest.mark.parametrize("length", [0, 4, 1000])
def test_a_cut_off_file_is_named(checkpoint: Path, part: str, length: int) -> None:
    path = checkpoint / part / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    accept(checkpoint)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
        LOADERS[part](checkpoint)


@pytest.mark.parametrize("file", ["vision/model.safetensors", "qformer/config.json", "llama/projection.safetensors"])
def test_a_missing_file_is_named(checkpoint: Path, file: str) -> None:
    (checkpoint / file).unlink()
    accept(checkpoint)
    with pytest.raises(CheckpointError, match=f"{file} is missing"):
        LOADERS[file.split("/", maxsplit=1)[0]](checkpoint)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    checkpoint = tiny.build_checkpoint(tmp_path / "sharded", shard_bytes=50_000)
    shard = sorted((checkpoint / "llama").glob("model-00002-*"))[0]
    shard.unlink()
    accept(checkpoint)
    with pytest.raises(CheckpointError, match=f"{shard.name} is missing"):
        load_llama(checkpoint)


def test_an_index_may_not_leave_its_folder(tmp_path: Path) -> None:
    checkpoint = tiny.build_checkpoint(tmp_path / "sharded", shard_bytes=50_000)
    index = checkpoint / "llama" / "model.safetensors.index.json"
    edit(index, weight_map={"lm_head.weight": "../../secret.safetensors"})
    accept(checkpoint)
    with pytest.raises(CheckpointError, match=r"outside its folder: \.\./\.\./secret"):
        load_llama(checkpoint)


@pytest.mark.parametrize("part", LOADERS)
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"query_tokens": 4}, "unknown field query_tokens in CheckpointConfig"),
        ({"prompt": {"user": "USER:"}}, "unknown field user in PromptTemplate"),
        ({"generation": {"beams": 5}}, "unknown field beams in GenerationDefaults"),
        ({"prompt": "<human>"}, "PromptTemplate must be an object"),
        ({"queries": ...}, "queries"),
        ({"queries": "four"}, "queries must be int, not str"),
        ({"generation": {"temperature": "hot"}}, "temperature must be float, not str"),
        ({"retrieval": 1}, "retrieval must be bool, not int"),
        ({"format": "other"}, "not the config of a ziya-visual checkpoint"),
        ({"version": 2}, "another format version"),
        ({"fingerprints": {}}, "no fingerprint of"),
    ],
)
def test_a_wrong_config_is_refused_by_field(
    checkpoint: Path, part: str, changes: dict[str, Any], complaint: str
) -> None:
    edit(checkpoint / "config.json", **changes)
    with pytest.raises(CheckpointError, match=complaint):
        LOADERS[part](checkpoint)


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a checkpoint: it has no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope scaling 'linear' is not supported"),
        ({"rope_parameters": ..., "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({"attention_bias": True}, "attention_bias True is not supported, only False"),
        ({"mlp_bias": True}, "mlp_bias True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"model_type": "mistral"}, "model_type 'mistral' is not supported, only 'llama'"),
        ({"num_hidden_layers": ...}, "num_hidden_layers is missing"),
        ({"hidden_size": 128}, "hidden_size is 128"),
    ],
)
def test_a_llama_that_the_engine_cannot_run_is_refused(
    checkpoint: Path, changes: dict[str, Any], complaint: str
) -> None:
    edit(checkpoint / "llama" / "config.json", **changes)
    accept(checkpoint)
    with pytest.raises(CheckpointError, match=complaint):
        load_llama(checkpoint)


def test_rope_theta_is_read_from_old_and_new_configs(checkpoint: Path) -> None:
    path = checkpoint / "llama" / "config.json"
    edit(path, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    accept(checkpoint)
    assert load_llama(checkpoint).shape.rope_theta == 500000.0
    edit(path, rope_parameters=..., rope_theta=20000.0)
    accept(checkpoint)
    assert load_llama(checkpoint).shape.rope_theta == 20000.0


def test_parts_that_contradict_the_config_are_refused(checkpoint: Path) -> None:
    edit(checkpoint / "config.json", qformer_reads_instruction=True)
    with pytest.raises(CheckpointError, match="use_qformer_text_input is False, which does not go with"):
        QFormer.load(checkpoint)
    edit(checkpoint / "vision" / "preprocessor_config.json", size={"height": 64, "width": 64})
    accept(checkpoint)
    with pytest.raises(CheckpointError, match="gives 64 pixels, the ViT takes 32"):
        VisionEncoder.load(checkpoint)


def test_a_text_branch_needs_its_tokenizer(tmp_path: Path) -> None:
    checkpoint = tiny.build_checkpoint(tmp_path / "instruct", reads_instruction=True)
    (checkpoint / "qformer" / "tokenizer.json").unlink()
    accept(checkpoint)
    with pytest.raises(CheckpointError, match=r"qformer/tokenizer\.json is missing"):
        QFormer.load(checkpoint)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"queries": 5}, r"query_tokens has shape \[1, 4, 32\], expected \[1, 5, 32\]"),
        ({"vision_width": 33}, "vision: hidden_size is 32, but vision_width is 33"),
        ({"llm_width": 65}, "llama: hidden_size is 64, but llm_width is 65"),
        ({"context_length": 4096}, "max_position_embeddings is 512, less than context_length 4096"),
        ({"queries": 0}, "queries must be at least 1"),
    ],
)
def test_saving_refuses_what_loading_would(
    built: Path, tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        save_checkpoint(
            tmp_path / "wrong",
            config=replace(read_config(built), **changes),
            vision=built / "vision",
            qformer=built / "qformer",
            llama=built / "llama",
        )
    assert list(tmp_path.iterdir()) == []
