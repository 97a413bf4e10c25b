"""Which code runs the model: compiled for this CPU where that can be, else torch."""

from __future__ import annotations

import logging
import os

import torch

from services.llama.engine.batch import Model
from services.llama.engine.cpu import CpuLlama, can_run
from services.llama.engine.cuda import cuda_llama
from services.llama.engine.kernels import libraries
from services.llama.engine.llama import Llama
from ziya.model.llama import LlamaWeights
from ziya.settings import SettingsError

log = logging.getLogger(__name__)
TORCH_THREADS_BESIDE_COMPILED = 1  # sampling's threads would otherwise fight with the model's over the cores


def choose_model(
    weights: LlamaWeights, context: int, *, kernels: str, quantise: str, threads: int, slots: int
) -> tuple[Model, int]:
    """The model and the threads that torch is to use beside it (0: its own choice).

    At most `slots` requests decode at once.
    `kernels` is "auto", "compiled" or "torch"; `quantise` is "none", "int8" or "int4". Raises SettingsError for what
    this machine cannot do.
    """
    tensor = weights.tensors["model.embed_tokens.weight"]
    compiled = (
        tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.bfloat16)
        and can_run(weights.shape, quantise)
    )
    if kernels == "compiled" and not compiled:
        raise SettingsError(
            "ZIYA_LLAMA_KERNELS is compiled, but the compiled model cannot run here: it takes an x86 CPU with AVX2, "
            "float32 or bfloat16, widths that are multiples of 32 (64 for int4), and "
            "`python -m services.llama.engine.kernels.build`"
        )
    if kernels == "torch" or not compiled:
        if quantise != "none":
            raise SettingsError(f"ZIYA_LLAMA_QUANTISE is {quantise}, and only the compiled model can do that")
        if tensor.device.type == "cuda" and kernels == "auto":
            log.info("the model runs on a GPU", extra={"device": str(tensor.device), "dtype": str(tensor.dtype)})
            return cuda_llama(weights, context, slots), threads
        log.info("the model runs on torch", extra={"device": str(tensor.device), "dtype": str(tensor.dtype)})
        return Llama(weights, context), threads
    count = threads or len(os.sched_getaffinity(0))
    instructions = next(iter(libraries()))
    numbers = {"dtype": str(tensor.dtype), "quantise": quantise}
    log.info("the model runs compiled", extra={"threads": count, "instructions": instructions, **numbers})
    return CpuLlama(weights, context, count, quantise), TORCH_THREADS_BESIDE_COMPILED
