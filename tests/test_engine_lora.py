"""LoRA adapters while serving: merged weights' answers, several in one batch, nothing shared, nothing forced out."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.llama.engine.engine import NativeEngine
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Prompt
from tests.adapters import ALL, Trained, train
from tests.engines import BOTH, DEFAULTS, Answer, ask, engine_on, random_prompt, reference, settled
from ziya.errors import Cancelled, InvalidRequest

pytestmark = BOTH


@pytest.fixture(autouse=True)
def every_engine_here(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFAULTS, "kernels", kernels)


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    folder = tmp_path_factory.mktemp("adapters")
    kinds = {"all": (ALL, 4), "two": (("q_proj", "v_proj"), 2), "mlp": (("gate_proj", "down_proj"), 17)}
    return {
        name: train(tiny_checkpoint, folder / name, number, targets, rank)
        for number, (name, (targets, rank)) in enumerate(kinds.items())
    }


async def asked(engine: NativeEngine, prompt: Prompt, tokens: int = 30) -> Answer:
    return await ask(engine, prompt, Sampling(max_tokens=tokens, ignore_eos=True))


async def test_a_batch_of_several_adapters_is_their_merged_weights(
    tiny_checkpoint: Path, trained: dict[str, Trained]
) -> None:
    """Prompts in chunks, in too little memory, with neighbours that have no adapter."""
    rng = random.Random(4)
    names = ["", *trained]
    prompts = [random_prompt(rng, images=number % 2) for number in range(12)]
    prompts = [Prompt(p.pieces, p.visuals, adapter=names[number % 4]) for number, p in enumerate(prompts)]
    async with engine_on(tiny_checkpoint, slots=8, kv_blocks=30, prefill_tokens=30) as engine:
        for name, adapter in trained.items():
            await engine.load_adapter(name, adapter.folder)
        assert engine.adapters() == ("all", "mlp", "two")
        answers = await asyncio.gather(*(asked(engine, prompt, 50) for prompt in prompts))
    for answer, prompt in zip(answers, prompts, strict=True):
        model = trained[prompt.adapter].merged if prompt.adapter else None
        assert answer.ids == reference(tiny_checkpoint, prompt, 50, other=model, eos_token_id=None), prompt.adapter


async def test_adapters_do_not_share_what_they_computed(tiny_checkpoint: Path, trained: dict[str, Trained]) -> None:
    """Nor does one that was loaded later under the same name."""
    text = tuple(range(5, 60))
    async with engine_on(tiny_checkpoint) as engine:
        cached = {}
        for folder, name in (("two", ""), ("two", "mine"), ("two", "mine"), ("all", "mine")):
            if name and folder == "all":
                await engine.unload_adapter(name)
            if name and name not in engine.adapters():
                await engine.load_adapter(name, trained[folder].folder)
            prompt = Prompt((text,), adapter=name)
            answer = await asked(engine, prompt)
            cached.setdefault((folder, name), []).append(answer.usage.cached_tokens)
            merged = trained[folder].merged if name else None
            assert answer.ids == reference(tiny_checkpoint, prompt, 30, other=merged, eos_token_id=None)
    assert cached == {("two", ""): [0], ("two", "mine"): [0, 48], ("all", "mine"): [0]}


async def test_unloading_waits_for_those_who_use_it(tiny_checkpoint: Path, trained: dict[str, Trained]) -> None:
    async with engine_on(tiny_checkpoint) as engine:
        await engine.load_adapter("two", trained["two"].folder)
        prompt = Prompt(((5, 6, 7),), adapter="two")
        stream = engine.submit(prompt, Sampling(max_tokens=500, ignore_eos=True))
        await anext(stream)
        unloading = asyncio.create_task(engine.unload_adapter("two"))
        while engine.adapters():
            await asyncio.sleep(0.005)
        with pytest.raises(InvalidRequest, match="there is no adapter two; loaded are: none"):
            engine.submit(prompt, Sampling())
        assert not unloading.done()
        stream.cancel()
        with pytest.raises(Cancelled):
            async for _ in stream:
                pass
        await unloading
        with pytest.raises(InvalidRequest, match="no adapter two"):
            await engine.unload_adapter("two")


async def test_a_refused_request_does_not_keep_its_adapter(tiny_checkpoint: Path, trained: dict[str, Trained]) -> None:
    async with engine_on(tiny_checkpoint, kv_blocks=2) as engine:
        await engine.load_adapter("two", trained["two"].folder)
        with pytest.raises(Exception, match="KV cache"):
            engine.submit(Prompt(((5,) * 40,), adapter="two"), Sampling())
        await asked(engine, Prompt(((5,),), adapter="two"), 3)
        await settled(engine)
        await engine.unload_adapter("two")


async def test_a_second_adapter_of_a_name_is_refused(tiny_checkpoint: Path, trained: dict[str, Trained]) -> None:
    async with engine_on(tiny_checkpoint) as engine:
        await engine.load_adapter("one", trained["two"].folder)
        with pytest.raises(InvalidRequest, match="one is loaded already"):
            await engine.load_adapter("one", trained["all"].folder)
        with pytest.raises(InvalidRequest, match="must have a name"):
            await engine.load_adapter("", trained["all"].folder)


def changed(
    source: Path, target: Path, config: dict[str, Any], key: str = "", tensor: torch.Tensor | None = None
) -> Path:
    """A copy of an adapter with other entries in its config, and one other tensor (or none of that name)."""
    target.mkdir()
    old = json.loads((source / "adapter_config.json").read_text("utf-8"))
    (target / "adapter_config.json").write_text(json.dumps(old | config), "utf-8")
    tensors = load_file(source / "adapter_model.safetensors")
    if key:
        tensors.pop(key, None)
    if tensor is not None:
        tensors[key] = tensor
    save_file(tensors, target / "adapter_model.safetensors")
    return target


Q_DOWN = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


BAD: list[tuple[dict[str, Any], str, torch.Tensor | None, str]] = [
    ({"use_dora": True}, "", None, "use_dora True is not supported"),
    ({"bias": "all"}, "", None, "bias 'all' is not supported"),
    ({"modules_to_save": ["lm_head"]}, "", None, "modules_to_save"),
    ({"peft_type": "IA3"}, "", None, "not of a LoRA adapter"),
    ({"r": 1000}, "", None, "rank 1000; 1 to 256 are supported"),
    ({"r": 3}, "", None, r"q_proj has shapes \[2, .*not \[3, "),
    ({"lora_alpha": "much"}, "", None, "lora_alpha 'much'"),
    ({}, Q_DOWN, None, "layers.0.self_attn.q_proj has only one of lora_A and lora_B"),
    ({}, Q_DOWN, torch.zeros(2, 5), r"shapes \[2, 5\]"),
    ({}, Q_DOWN, torch.full((2, 64), torch.nan), "q_proj holds values that are not finite"),
    ({}, Q_DOWN.replace("layers.0", "layers.9"), torch.zeros(2, 5), "layers.9.self_attn.q_proj.lora_A.* has no"),
    ({}, "base_model.model.lm_head.lora_A.weight", torch.zeros(2, 5), "lm_head.lora_A.weight has no place"),
]


async def test_what_cannot_be_computed_is_refused_by_name(
    tiny_checkpoint: Path, trained: dict[str, Trained], tmp_path: Path
) -> None:
    async with engine_on(tiny_checkpoint) as engine:
        for number, (config, key, tensor, complaint) in enumerate(BAD):
            folder = changed(trained["two"].folder, tmp_path / str(number), config, key, tensor)
            with pytest.raises(InvalidRequest, match=complaint):
                await engine.load_adapter("bad", folder)
        assert engine.adapters() == ()


async def test_files_that_are_not_there_are_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    async with engine_on(tiny_checkpoint) as engine:
        with pytest.raises(InvalidRequest, match=r"adapter_config\.json cannot be read"):
            await engine.load_adapter("bad", tmp_path)
        (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}', "utf-8")
        with pytest.raises(InvalidRequest, match=r"adapter_model\.safetensors cannot be read"):
            await engine.load_adapter("bad", tmp_path)
