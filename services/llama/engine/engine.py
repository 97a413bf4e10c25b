"""The native engine behind the seam: checks a prompt, gives its stream, and starts and ends the worker."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from services.llama.engine.adapters import Adapters
from services.llama.engine.admission import Admission
from services.llama.engine.batch import Model
from services.llama.engine.blocks import BLOCK, BlockPool, blocks_for
from services.llama.engine.delivery import Delivery
from services.llama.engine.detokenizer import TokenBytes
from services.llama.engine.guided import Grammars
from services.llama.engine.lora import read_adapter
from services.llama.engine.models import choose_model
from services.llama.engine.runner import Runner
from services.llama.engine.sampling import Sampling
from services.llama.engine.scheduler import Scheduler
from services.llama.engine.seam import Prompt, Stats
from services.llama.engine.sequence import Sequence
from services.llama.engine.stream import NativeStream
from services.llama.engine.worker import Worker
from ziya.errors import InvalidRequest, PromptTooLong
from ziya.model.llama import LlamaWeights

COMPILE_SECONDS = 5.0


@dataclass(frozen=True)
class EngineOptions:
    """`slots` requests run at once and `waiting` more may queue; 0 for `context` and `threads` leaves them as they are.

    `prefill_tokens` bounds the prompt tokens of one step. The KV cache has `kv_blocks` blocks of 16 positions, 0 for as
    many as `slots` requests of the whole context fill; with `prefix_reuse` what prompts begin with is looked for in
    it. Up to `lookup_tokens` of a greedy answer are guessed ahead. `kernels` and `quantise` are `choose_model`'s. Text
    is sent at most every `stream_interval` seconds, while no more than `few` requests run every `few_interval`.
    """

    slots: int = 32
    waiting: int = 256
    context: int = 0
    threads: int = 0
    prefill_tokens: int = 256
    stream_interval: float = 0.2
    few: int = 4
    few_interval: float = 0.03
    kv_blocks: int = 0
    prefix_reuse: bool = True
    lookup_tokens: int = 0
    kernels: str = "auto"
    quantise: str = "none"


class NativeEngine:
    """Implements `seam.Engine`. Takes `weights` over: its layers are fused, and nobody else may use them after.

    `choose` makes the model, as `choose_model` does.
    """

    def __init__(
        self, weights: LlamaWeights, options: EngineOptions, choose: Callable[..., tuple[Model, int]] = choose_model
    ) -> None:
        self._shape = weights.shape
        self._eos = frozenset(self._shape.eos_ids)
        tokenizer = Tokenizer.from_file(str(weights.tokenizer))
        self._table = TokenBytes(tokenizer)
        self._grammars = Grammars(tokenizer, self._table, self._shape.vocab, tuple(self._shape.eos_ids))
        self.context = min(options.context or self._shape.max_positions, self._shape.max_positions)
        self._admission = Admission(self._shape.vocab, weights.projection_weight.shape[1], self.context)
        model, torch_threads = choose(
            weights,
            self.context,
            kernels=options.kernels,
            quantise=options.quantise,
            threads=options.threads,
            slots=options.slots,
        )
        self._pool = BlockPool(options.kv_blocks or options.slots * blocks_for(self.context))
        self._adapters = Adapters()
        self._adapter_place = model.dtype, model.device
        scheduler = Scheduler(
            options.slots,
            options.prefill_tokens,
            self._pool,
            reuse=options.prefix_reuse,
            guesses=options.lookup_tokens,
        )
        self._worker = Worker(
            Runner(model, model.new_cache(self._pool.count)),
            scheduler,
            self._adapters,
            Delivery(options.stream_interval, few=options.few, few_interval=options.few_interval),
            capacity=options.slots + options.waiting,
            threads=torch_threads,
        )

    def submit(self, prompt: Prompt, sampling: Sampling, deadline: float | None = None) -> NativeStream:
        self._admission.check(prompt)
        self._admission.check_bias(sampling)
        guide = self._grammars.guide(sampling.json_schema) if sampling.json_schema else None
        adapter = self._adapters.use(prompt.adapter)
        try:
            sequence = Sequence(
                prompt=prompt,
                sampling=sampling,
                deadline=math.inf if deadline is None else deadline,
                table=self._table,
                context=self.context,
                submitted=time.perf_counter(),
                eos=self._eos,
                adapter=adapter,
                guide=guide,
            )
            self._check_room(sequence)
            stream = NativeStream(asyncio.get_running_loop(), sequence.cancel)
            self._worker.post(sequence, stream)
        except BaseException:
            self._adapters.leave(adapter)
            raise
        return stream

    async def prepare(self, sampling: Sampling) -> None:
        if sampling.json_schema:
            try:
                async with asyncio.timeout(COMPILE_SECONDS):
                    await asyncio.to_thread(self._grammars.guide, sampling.json_schema)
            except TimeoutError:
                raise InvalidRequest(f"json_schema takes longer than {COMPILE_SECONDS:g} s to compile") from None

    def check_length(self, text_tokens: int, image_tokens: int) -> None:
        self._admission.check_length(text_tokens, image_tokens)

    async def load_adapter(self, name: str, folder: Path) -> None:
        self._adapters.refuse(name)
        self._adapters.add(await asyncio.to_thread(read_adapter, name, folder, self._shape, *self._adapter_place))

    async def unload_adapter(self, name: str) -> None:
        await asyncio.to_thread(self._adapters.remove, name)

    def adapters(self) -> tuple[str, ...]:
        return self._adapters.names

    def stats(self) -> Stats:
        return self._worker.stats()

    def first_token_seconds(self) -> list[float]:
        return self._worker.first_token_seconds()

    async def close(self, drain_seconds: float = 0.0) -> None:
        await asyncio.to_thread(self._worker.stop, drain_seconds)

    def _check_room(self, sequence: Sequence) -> None:
        if sequence.most_blocks > self._pool.count:
            raise PromptTooLong(
                f"prompt and answer may take {sequence.most_blocks} blocks of {BLOCK} positions, "
                f"and the KV cache has {self._pool.count}"
            )
