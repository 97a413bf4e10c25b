"""The folder of adapters: what is put there is served, what goes is not, and what cannot be used harms nobody."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.llama.adapter_folder import AdapterFolder
from services.llama.engine.engine import NativeEngine
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Prompt
from tests.adapters import ALL, Trained, train
from tests.engines import ask, engine_on, reference


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Trained]:
    root = tmp_path_factory.mktemp("trained")
    return [train(tiny_checkpoint, root / str(seed), seed, ALL, 4) for seed in range(2)]


@pytest.fixture
async def engine(tiny_checkpoint: Path) -> AsyncIterator[NativeEngine]:
    async with engine_on(tiny_checkpoint) as engine:
        yield engine


def put(adapter: Trained, folder: Path) -> None:
    """As the docstring advises: beside, then by a rename."""
    shutil.copytree(adapter.folder, folder.with_name(".coming"))
    folder.with_name(".coming").rename(folder)


async def said(engine: NativeEngine, adapter: str) -> list[int]:
    return (await ask(engine, Prompt(((5, 6, 7),), adapter=adapter), Sampling(max_tokens=20, ignore_eos=True))).ids


async def test_adapters_come_change_and_go_with_their_folders(
    engine: NativeEngine, tiny_checkpoint: Path, trained: list[Trained], tmp_path: Path
) -> None:
    def expected(adapter: Trained) -> list[int]:
        return reference(tiny_checkpoint, Prompt(((5, 6, 7),)), 20, other=adapter.merged, eos_token_id=None)

    folder = AdapterFolder(engine, tmp_path)
    await folder.look()
    assert engine.adapters() == ()
    put(trained[0], tmp_path / "terse")
    put(trained[1], tmp_path / "verbose")
    await folder.look()
    assert engine.adapters() == ("terse", "verbose")
    assert await said(engine, "terse") == expected(trained[0])
    shutil.rmtree(tmp_path / "terse")
    put(trained[1], tmp_path / "terse")
    await folder.look()
    assert await said(engine, "terse") == expected(trained[1]) != expected(trained[0])
    shutil.rmtree(tmp_path / "verbose")
    await folder.look()
    assert engine.adapters() == ("terse",)


async def test_one_that_cannot_be_used_is_named_once_and_tried_again_when_it_changes(
    engine: NativeEngine, trained: list[Trained], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(trained[0], tmp_path / "good")
    put(trained[1], tmp_path / "broken")
    (tmp_path / "broken" / "adapter_model.safetensors").write_bytes(b"not weights")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "adapter_config.json").write_text("{}")
    folder = AdapterFolder(engine, tmp_path)
    for _ in range(3):
        await folder.look()
    assert engine.adapters() == ("good",)
    assert [record.__dict__["adapter"] for record in caplog.records if record.levelname == "ERROR"] == ["broken"]
    shutil.copy(trained[1].folder / "adapter_model.safetensors", tmp_path / "broken" / "adapter_model.safetensors")
    await folder.look()
    assert engine.adapters() == ("broken", "good")


async def test_a_folder_that_is_not_there_is_said_and_no_end(
    engine: NativeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await AdapterFolder(engine, tmp_path / "nowhere").look()
    assert "cannot be read" in caplog.text
