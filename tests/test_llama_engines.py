"""Which engine is started, and how vLLM is, as far as that can be seen without it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from services.llama.engine.engine import NativeEngine
from services.llama.engine.frame import read_frame
from services.llama.engine.vllm_options import engine_arguments, vllm_folder
from services.llama.engines import start_engine
from services.llama.settings import Settings
from ziya.checkpoint import CheckpointError
from ziya.model.llama import load_llama
from ziya.settings import SettingsError

LLAMA_13B = {"llama_device": "cuda", "llama_dtype": "bfloat16", "llama_max_running": 64, "llama_prefill_tokens": 2048}


def settings(checkpoint: Path, **given: Any) -> Settings:
    return Settings(checkpoint=checkpoint, llama_engine="vllm", **given)


async def test_native_is_what_starts_unless_told_otherwise(tiny_checkpoint: Path) -> None:
    engine = await start_engine(Settings(checkpoint=tiny_checkpoint, llama_threads=1))
    assert isinstance(engine, NativeEngine)
    await engine.close()


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
async def test_without_vllm_the_extra_is_named(tiny_checkpoint: Path) -> None:
    with pytest.raises(SettingsError, match=r"ziya-visual\[llama,vllm\]"):
        await start_engine(settings(tiny_checkpoint))


@pytest.mark.parametrize("given", [{"llama_quantise": "int8"}, {"llama_lookup_tokens": 4}])
async def test_what_is_the_native_engines_is_refused(tiny_checkpoint: Path, given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(given)).upper()):
        await start_engine(settings(tiny_checkpoint, **given))


def test_the_programs_start_does_not_import_vllm() -> None:
    code = "import sys, services.llama.host; assert not [name for name in sys.modules if name.split('.')[0] == 'vllm']"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_on_a_gpu_vllm_gets_its_share_of_memory_and_prompts_in_chunks(tiny_checkpoint: Path) -> None:
    options = settings(tiny_checkpoint, **LLAMA_13B, llama_vllm_memory=0.8, llama_vllm_tensor_parallel=2).vllm_options
    arguments = engine_arguments(options, read_frame(tiny_checkpoint, torch.bfloat16).shape, Path("there"))
    expected = {
        "model": "there",
        "dtype": "bfloat16",
        "max_model_len": 512,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048 + 64,
        "enable_chunked_prefill": True,
        "gpu_memory_utilization": 0.8,
        "tensor_parallel_size": 2,
        "quantization": None,
    }
    assert arguments | expected == arguments
    assert "kv_cache_memory_bytes" not in arguments
    assert "enable_lora" not in arguments


@pytest.mark.parametrize(("blocks", "positions"), [(0, 4 * 384), (10, 160)])
def test_on_a_cpu_the_cache_is_of_a_size_and_prompts_are_whole(
    tiny_checkpoint: Path, blocks: int, positions: int
) -> None:
    """Two layers, keys and values of two heads of 16 numbers, 4 bytes each; whole blocks of 128 positions."""
    given = {"llama_max_running": 4, "llama_max_context": 300, "llama_kv_blocks": blocks, "llama_vllm_adapters": 3}
    options = settings(tiny_checkpoint, llama_device="cpu", llama_prefill_tokens=512, **given).vllm_options
    arguments = engine_arguments(options, read_frame(tiny_checkpoint, torch.float32).shape, Path("there"))
    assert arguments["kv_cache_memory_bytes"] == positions * 2 * 2 * 2 * 16 * 4
    assert not arguments["enable_chunked_prefill"]
    assert arguments["max_num_batched_tokens"] == 512 + 4
    assert arguments["max_loras"] == 3 + 1


def test_vllm_sees_the_model_without_the_projection(tiny_checkpoint: Path) -> None:
    frame = read_frame(tiny_checkpoint, torch.float32)
    with vllm_folder(frame.llama, frame.shape) as folder:
        names = {path.name for path in folder.iterdir()}
        assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
        assert json.loads((folder / "tokenizer_config.json").read_text("utf-8"))["eos_token"] == "</s>"
        assert (folder / "model.safetensors").read_bytes() == (frame.llama / "model.safetensors").read_bytes()
    assert not folder.exists()


def test_the_frame_is_that_of_the_whole_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    frame, whole = read_frame(tiny_checkpoint, torch.float32), load_llama(tiny_checkpoint)
    assert frame.shape == whole.shape
    assert frame.tokenizer == whole.tokenizer
    assert torch.equal(frame.projection_weight, whole.projection_weight)
    assert torch.equal(frame.projection_bias, whole.projection_bias)
    with pytest.raises(CheckpointError):
        read_frame(tmp_path, torch.float32)
