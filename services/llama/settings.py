"""What the LLaMA stage reads from the environment; the Triton model gives it to the engine."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field

from services.llama.engine.blocks import BLOCK
from services.llama.engine.engine import EngineOptions
from services.llama.engine.vllm_options import VllmOptions
from ziya.settings import ProcessSettings

PREFILL_TOKENS = {"cpu": 256, "cuda": 2048}


class Settings(ProcessSettings):
    """Read inside the Triton model's process, so also in NVIDIA's own image."""

    program: ClassVar[str] = "llama"

    # vllm needs the extra of that name.
    llama_engine: Literal["native", "vllm"] = "native"
    # auto: bfloat16 on a GPU, float32 on a CPU (there it equals transformers token for token).
    llama_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    llama_device: Literal["auto", "cpu", "cuda"] = "auto"
    # auto: compiled for this CPU where that can be, else torch.
    llama_kernels: Literal["auto", "compiled", "torch"] = "auto"
    # 8- or 4-bit weights of layers and head: half or a quarter of bfloat16's memory traffic, at a loss of accuracy.
    llama_quantise: Literal["none", "int8", "int4"] = "none"
    # 0 leaves torch's own choice, one thread a core.
    llama_threads: int = Field(0, ge=0, le=1024)
    # Requests decoded together.
    llama_max_running: int = Field(32, ge=1, le=4096)
    # Further requests that may wait, for tokens of an image or for a place; more are refused.
    llama_max_waiting: int = Field(256, ge=0)
    # 0 takes the model's own; less saves KV-cache memory.
    llama_max_context: int = Field(0, ge=0)
    # Prompt tokens computed in one step at most: bounds how long a new request delays the others. 0 is what suits the
    # device: a CPU computes a few hundred of them as fast, each, as more.
    llama_prefill_tokens: int = Field(0, ge=0)
    # Blocks of 16 positions in the KV cache; 0 has room for a whole context of each request that runs.
    llama_kv_blocks: int = Field(0, ge=0)
    # Keys and values of what a prompt begins with, images too, are kept and found again; off computes every prompt.
    llama_prefix_reuse: bool = True
    # A folder of LoRA adapters as peft writes them, a folder each: loaded, unloaded and loaded anew while serving, as
    # folders come, go and change. A request names one behind the model's name, as in ziya-visual:NAME.
    llama_adapters_dir: Path | None = None
    # How often it is looked at.
    llama_adapters_interval: float = Field(5.0, gt=0)
    # Tokens of a greedy answer guessed ahead out of prompt and answer; pays where answers quote, 0 is off.
    llama_lookup_tokens: int = Field(0, ge=0, le=64)
    # GPUs that share the model.
    llama_vllm_tensor_parallel: int = Field(1, ge=1, le=64)
    # The part of a GPU's memory that weights and KV cache may fill.
    llama_vllm_memory: float = Field(0.9, gt=0, le=1)
    # A way of vLLM's to quantise, as fp8 or bitsandbytes; "" is none, or the checkpoint's own.
    llama_vllm_quantise: str = Field("", pattern=r"^[a-z0-9_-]*$")
    # LoRA adapters that may be loaded; any at all costs memory and speed.
    llama_vllm_adapters: int = Field(0, ge=0, le=64)
    # Neither compiles nor captures graphs: a start in seconds, and slower steps.
    llama_vllm_eager: bool = False
    # A request's text is sent at most this often; each response costs its way to the client.
    llama_stream_interval: float = Field(0.2, ge=0)
    # The same while no more than four run; 0 sends each token by itself.
    llama_few_stream_interval: float = Field(0.03, ge=0)
    # How often Triton is asked whether a client went away that no gateway would announce, or while Redis is away: less
    # often while there are more than 64. For all others it is asked once a second.
    llama_cancel_interval: float = Field(0.075, gt=0)
    # How often Triton's /metrics gets our numbers.
    llama_metrics_interval: float = Field(0.5, gt=0)

    @property
    def device(self) -> torch.device:
        if self.llama_device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.llama_device)

    @property
    def dtype(self) -> torch.dtype:
        if self.llama_dtype == "auto":
            return torch.bfloat16 if self.device.type == "cuda" else torch.float32
        return torch.float32 if self.llama_dtype == "float32" else torch.bfloat16

    @property
    def prefill_tokens(self) -> int:
        return self.llama_prefill_tokens or PREFILL_TOKENS[self.device.type]

    @property
    def engine_options(self) -> EngineOptions:
        return EngineOptions(
            slots=self.llama_max_running,
            waiting=self.llama_max_waiting,
            context=self.llama_max_context,
            threads=self.llama_threads,
            prefill_tokens=self.prefill_tokens,
            kv_blocks=self.llama_kv_blocks,
            prefix_reuse=self.llama_prefix_reuse,
            lookup_tokens=self.llama_lookup_tokens,
            kernels=self.llama_kernels,
            quantise=self.llama_quantise,
            stream_interval=self.llama_stream_interval,
            few_interval=self.llama_few_stream_interval,
        )

    @property
    def vllm_options(self) -> VllmOptions:
        return VllmOptions(
            dtype=str(self.dtype).removeprefix("torch."),
            on_cpu=self.device.type == "cpu",
            slots=self.llama_max_running,
            waiting=self.llama_max_waiting,
            context=self.llama_max_context,
            threads=self.llama_threads,
            prefill_tokens=self.prefill_tokens,
            kv_positions=self.llama_kv_blocks * BLOCK,
            prefix_reuse=self.llama_prefix_reuse,
            stream_interval=self.llama_stream_interval,
            few_interval=self.llama_few_stream_interval,
            tensor_parallel=self.llama_vllm_tensor_parallel,
            memory=self.llama_vllm_memory,
            quantisation=self.llama_vllm_quantise,
            adapters=self.llama_vllm_adapters,
            eager=self.llama_vllm_eager,
        )
