"""Which engine runs the LLaMA: our own, or vLLM, which is imported when it is wanted and need not be installed."""

from __future__ import annotations

import asyncio
import logging
import os

from services.llama.engine.engine import NativeEngine
from services.llama.engine.frame import read_frame
from services.llama.engine.seam import Engine
from services.llama.engine.vllm_options import prepare_process
from services.llama.settings import Settings
from ziya.model.llama import load_llama
from ziya.settings import SettingsError

log = logging.getLogger(__name__)
DEAD = 70  # EX_SOFTWARE


async def start_engine(settings: Settings) -> Engine:
    """Loads the weights. Raises CheckpointError, or SettingsError for what cannot be had here or goes not together."""
    if settings.llama_engine == "vllm":
        return await _vllm(settings)
    weights = await asyncio.to_thread(load_llama, settings.checkpoint, dtype=settings.dtype, device=settings.device)
    # packing a large model's weights takes a while, and Redis is being waited for on this loop
    return await asyncio.to_thread(NativeEngine, weights, settings.engine_options)


async def _vllm(settings: Settings) -> Engine:
    for name, is_off in (
        ("quantise", settings.llama_quantise == "none"),
        ("lookup_tokens", not settings.llama_lookup_tokens),
    ):
        if not is_off:
            raise SettingsError(f"ZIYA_LLAMA_{name.upper()} is the native engine's, and ZIYA_LLAMA_ENGINE is vllm")
    frame = await asyncio.to_thread(read_frame, settings.checkpoint, settings.dtype)
    prepare_process(settings.vllm_options)
    try:
        from services.llama.engine.vllm_engine import VllmEngine  # noqa: PLC0415 (takes seconds)
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise SettingsError(
            "ZIYA_LLAMA_ENGINE is vllm, and vLLM is not installed here; it comes with the extra ziya-visual[llama,vllm]"
        ) from None
    return await VllmEngine.start(frame, settings.vllm_options, _end)


def _end() -> None:
    """Without vLLM's processes this one is of no use: its end brings a new one (see `lifeline`)."""
    logging.shutdown()
    os._exit(DEAD)
