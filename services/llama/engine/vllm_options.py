"""How vLLM is started: our options as its engine arguments, and the folder that it may read a checkpoint from."""

from __future__ import annotations

import codecs
import json
import locale
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from services.llama.engine.lora import PROJECTIONS
from ziya.model.layout import LlamaShape
from ziya.model.llama import PROJECTION_FILE

MAX_LORA_RANK = 64


@dataclass(frozen=True)
class VllmOptions:
    """`slots` requests run at once and `waiting` more may queue; 0 for `context` and `threads` leaves them to vLLM.

    `prefill_tokens` bounds the prompt tokens of one step. The KV cache has room for `kv_positions`; where that is 0, on
    a GPU for what `memory`, the part of it that vLLM may fill, leaves, and on a CPU for `slots` requests of the
    whole context.
    `quantisation` is a name of vLLM's, "" none. Up to `adapters` LoRA adapters may be loaded. `chunked` says whether
    prompts may be computed in pieces; None is yes on a GPU and no on a CPU.
    """

    dtype: str = "float32"
    on_cpu: bool = True
    slots: int = 32
    waiting: int = 256
    context: int = 0
    threads: int = 0
    prefill_tokens: int = 512
    stream_interval: float = 0.2
    few: int = 4
    few_interval: float = 0.03
    tensor_parallel: int = 1
    memory: float = 0.9
    quantisation: str = ""
    eager: bool = False
    prefix_reuse: bool = True
    kv_positions: int = 0
    adapters: int = 0
    chunked: bool | None = None

    @property
    def in_chunks(self) -> bool:
        """On a CPU, vLLM 0.32 ends when a request with a seed has its prompt computed in more than one step."""
        return not self.on_cpu if self.chunked is None else self.chunked


CPU_BLOCK = 128  # positions of a block of vLLM's KV cache on a CPU


def engine_arguments(options: VllmOptions, shape: LlamaShape, folder: Path) -> dict[str, Any]:
    """Keyword arguments of vLLM's AsyncEngineArgs."""
    context = min(options.context or shape.max_positions, shape.max_positions)
    arguments: dict[str, Any] = {
        "model": str(folder),
        "hf_overrides": {"architectures": ["LlamaForCausalLM"]},
        "load_format": "safetensors",
        "generation_config": "vllm",
        "dtype": options.dtype,
        "quantization": options.quantisation or None,
        "tensor_parallel_size": options.tensor_parallel,
        "max_model_len": context,
        "max_num_seqs": options.slots,
        "max_num_batched_tokens": max(options.prefill_tokens + options.slots, 0 if options.in_chunks else context),
        "enable_chunked_prefill": options.in_chunks,
        "enable_prefix_caching": options.prefix_reuse,
        "enable_prompt_embeds": True,
        "structured_outputs_config": {"backend": "guidance"},
        "enforce_eager": options.eager,
        "disable_log_stats": True,
    }
    if options.adapters:
        arguments |= {
            "enable_lora": True,
            # On a CPU, 0.32 takes the last place for requests without an adapter: it has to be empty.
            "max_loras": options.adapters + options.on_cpu,
            "max_lora_rank": MAX_LORA_RANK,
            # Left to itself, vLLM has an adapter change the embedding, too; there 0.32 dies of prompts with embeddings.
            "lora_target_modules": [module.rpartition(".")[2] for module in PROJECTIONS],
        }
    if options.on_cpu or options.kv_positions:
        positions = options.kv_positions or options.slots * -(-context // CPU_BLOCK) * CPU_BLOCK
        arguments["kv_cache_memory_bytes"] = (
            positions * _position_bytes(shape, options.dtype) // options.tensor_parallel
        )
    else:
        arguments["gpu_memory_utilization"] = options.memory
    return arguments


def prepare_process(options: VllmOptions) -> None:
    """Before vLLM is imported: what it needs of this process, and of those that it starts. What is set already stays.

    Triton's embedded Python knows no locale, so that files would be read as ASCII, and may not know its own program.
    """
    if codecs.lookup(locale.getencoding()).name != "utf-8":
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    cpus = sorted(os.sched_getaffinity(0))
    wanted = {
        # a fork of a process with threads may hang
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        # left alone, vLLM keeps one core for itself
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus[: options.threads or len(cpus)])),
    }
    if options.tensor_parallel > 1:
        del wanted["VLLM_CPU_OMP_THREADS_BIND"]
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    if "python" not in Path(sys.executable or "").name or "stub" in Path(sys.executable).name:
        # the first python3 on PATH is the model's own
        multiprocessing.set_executable(shutil.which("python3") or sys.executable)


@contextmanager
def vllm_folder(llama: Path, shape: LlamaShape) -> Iterator[Path]:
    """A folder of links to llama/, without the projection, which vLLM would take for a part of the model.

    It says, too, what the tokenizer is and which token ends an answer: guided output needs both.
    """
    tokenizer = Tokenizer.from_file(str(llama / "tokenizer.json"))
    ends = [tokenizer.id_to_token(number) for number in shape.eos_ids]
    named = {"eos_token": ends[0]} if ends and ends[0] else {}
    with tempfile.TemporaryDirectory(prefix="ziya-vllm-") as name:
        folder = Path(name)
        for path in llama.iterdir():
            if path.is_file() and path.name not in (PROJECTION_FILE, "tokenizer_config.json"):
                (folder / path.name).symlink_to(path.resolve())
        text = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **named})
        (folder / "tokenizer_config.json").write_text(text, "utf-8")
        yield folder


def _position_bytes(shape: LlamaShape, dtype: str) -> int:
    """Keys and values of one position in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * (4 if dtype == "float32" else 2)
