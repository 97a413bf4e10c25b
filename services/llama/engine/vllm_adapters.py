"""LoRA adapters in vLLM: checked as the native engine checks them, then handed over by folder."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import torch
from vllm.lora.request import LoRARequest

from services.llama.engine.adapters import Adapters
from services.llama.engine.lora import LoraAdapter, read_adapter
from services.llama.engine.vllm_options import MAX_LORA_RANK
from ziya.errors import InvalidRequest
from ziya.model.layout import LlamaShape


class VllmAdapters:
    """Belongs to an event loop. Up to `at_once` of them may be loaded; 0 refuses all."""

    def __init__(self, llm: Any, shape: LlamaShape, at_once: int) -> None:
        self._llm, self._shape, self._at_once = llm, shape, at_once
        self._loaded = Adapters()
        self._named: dict[str, LoraAdapter] = {}
        self._requests: dict[LoraAdapter, Any] = {}
        self._numbers = itertools.count(1)

    @property
    def names(self) -> tuple[str, ...]:
        return self._loaded.names

    async def load(self, name: str, folder: Path) -> None:
        """Raises InvalidRequest."""
        self._loaded.refuse(name)
        if len(self.names) >= self._at_once:
            raise InvalidRequest(f"the vllm engine was started for {self._at_once} adapters (ZIYA_LLAMA_VLLM_ADAPTERS)")
        read = await asyncio.to_thread(read_adapter, name, folder, self._shape, torch.float32, torch.device("cpu"))
        _check_rank(read)
        request, adapter = self._request(name, folder), LoraAdapter(name, (), read.lineage)
        await self._llm.add_lora(request)
        try:
            self._loaded.add(adapter)
        except InvalidRequest:  # another one of that name came first
            await self._llm.remove_lora(request.lora_int_id)
            raise
        self._named[name], self._requests[adapter] = adapter, request

    async def unload(self, name: str) -> None:
        """Returns when those who use it have ended. Raises InvalidRequest."""
        adapter = self._named.pop(name, None)
        await asyncio.to_thread(self._loaded.remove, name)
        if adapter is not None:
            await self._llm.remove_lora(self._requests.pop(adapter).lora_int_id)

    def use(self, name: str) -> LoraAdapter | None:
        """For one request more, until `leave`. Raises InvalidRequest when it is not loaded."""
        return self._loaded.use(name)

    def leave(self, adapter: LoraAdapter | None) -> None:
        self._loaded.leave(adapter)

    def _request(self, name: str, folder: Path) -> Any:
        """vLLM finds an adapter's keys and values by its name: the next one that is called so must have another."""
        number = next(self._numbers)
        return LoRARequest(f"{number}:{name}", number, str(folder.resolve()))

    def request(self, adapter: LoraAdapter | None) -> Any:
        """What vLLM wants to see with a request."""
        return None if adapter is None else self._requests[adapter]


def _check_rank(adapter: LoraAdapter) -> None:
    rank = max((change.down.shape[0] for layer in adapter.layers for change in layer.values()), default=0)
    if rank > MAX_LORA_RANK:
        raise InvalidRequest(f"adapter {adapter.name} has rank {rank}, and the vllm engine takes up to {MAX_LORA_RANK}")
