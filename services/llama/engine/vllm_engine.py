"""The vllm engine behind the seam: vLLM's AsyncLLM computes, and text, stops and errors are ours.

For what the native engine leaves to others: many GPUs, tensor parallelism, vLLM's quantised weights. Everything here
runs on one event loop; vLLM's own processes do the work. Importing this module imports vLLM, which takes seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from services.llama.engine.admission import Admission
from services.llama.engine.answer import Answer
from services.llama.engine.detokenizer import TokenBytes
from services.llama.engine.frame import Frame
from services.llama.engine.lora import LoraAdapter
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Delta, Prompt, Stats, Usage
from services.llama.engine.stream import NativeStream
from services.llama.engine.vllm_adapters import VllmAdapters
from services.llama.engine.vllm_leash import Leash
from services.llama.engine.vllm_options import VllmOptions, engine_arguments, vllm_folder
from services.llama.engine.vllm_request import Projection, check_params, engine_input, sampling_params, token_logprobs
from services.llama.engine.vllm_stats import Recorder
from ziya.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    Overloaded,
    Unavailable,
    ZiyaError,
)

log = logging.getLogger(__name__)
CLOSING = "the engine is shutting down"
GONE = "the engine's processes have ended"
WATCH_SECONDS = 0.5
EXIT_SECONDS = 20.0  # after which vLLM kills a process of its own that has not ended


@dataclass(eq=False)
class Running:
    """One request: what was asked, what has been said, and when. `last` is the end of its answer."""

    prompt: Prompt
    answer: Answer
    params: Any
    stream: NativeStream = field(init=False)
    submitted: float = field(default_factory=time.perf_counter)
    first_token: float = 0.0
    sent: float = 0.0
    last: Delta | None = None


class VllmEngine:
    """Implements `seam.Engine`. `start` makes one; `dead` is called once, should vLLM's processes end by themselves."""

    def __init__(self, llm: Any, recorder: Recorder, frame: Frame, options: VllmOptions, dead: Callable[[], None]):
        self._llm, self._recorder, self._options, self._dead = llm, recorder, options, dead
        self._eos = frame.shape.eos_ids
        self._projection = Projection(frame.projection_weight, frame.projection_bias)
        self._table = TokenBytes(Tokenizer.from_file(str(frame.tokenizer)))
        self.context: int = llm.model_config.max_model_len
        self._admission = Admission(frame.shape.vocab, frame.projection_weight.shape[1], self.context)
        self._adapters = VllmAdapters(llm, frame.shape, options.adapters)
        self._open: dict[Running, asyncio.Task[None]] = {}
        self._count: Counter[str] = Counter()
        self._first_tokens: list[float] = []
        self._numbers = 0
        self._closing = self._gone = False
        self._leash = Leash(process.pid for process in llm.engine_core.resources.engine_manager.processes)
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(cls, frame: Frame, options: VllmOptions, dead: Callable[[], None] = lambda: None) -> VllmEngine:
        """Loads the weights, in minutes for a large model. `prepare_process` came before. It raises what vLLM does."""
        recorder = Recorder()

        def load() -> Any:
            with vllm_folder(frame.llama, frame.shape) as folder:
                arguments = AsyncEngineArgs(**engine_arguments(options, frame.shape, folder))
                return AsyncLLM.from_engine_args(arguments, stat_loggers=[recorder.of_vllm])

        llm = await asyncio.to_thread(load)
        return cls(llm, recorder, frame, options, dead)

    def submit(self, prompt: Prompt, sampling: Sampling, deadline: float | None = None) -> NativeStream:
        self._admission.check(prompt)
        self._admission.check_bias(sampling)
        limit = min(sampling.max_tokens, self.context - prompt.positions)
        params = sampling_params(sampling, self._eos, limit)
        if self._closing or self._gone:
            raise Unavailable(GONE if self._gone else CLOSING)
        if len(self._open) >= self._options.slots + self._options.waiting:
            self._count["rejected"] += 1
            raise Overloaded("the engine's waiting queue is full")
        request = Running(prompt, Answer(self._table, sampling, frozenset(self._eos), limit), params)
        adapter = self._adapters.use(prompt.adapter)
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._serve(request, adapter, deadline))
        request.stream = NativeStream(loop, partial(_cancel, task))
        self._open[request] = task
        task.add_done_callback(partial(self._ended, request, adapter))
        return request.stream

    async def prepare(self, sampling: Sampling) -> None:
        if sampling.json_schema:
            await asyncio.to_thread(check_params, sampling_params(sampling, self._eos, 1), self._llm)

    def check_length(self, text_tokens: int, image_tokens: int) -> None:
        self._admission.check_length(text_tokens, image_tokens)

    def stats(self) -> Stats:
        return self._recorder.stats(len(self._open), self._options.slots, self._count)

    def first_token_seconds(self) -> list[float]:
        taken, self._first_tokens = self._first_tokens, []
        return taken

    async def load_adapter(self, name: str, folder: Path) -> None:
        await self._adapters.load(name, folder)

    async def unload_adapter(self, name: str) -> None:
        await self._adapters.unload(name)

    def adapters(self) -> tuple[str, ...]:
        return self._adapters.names

    async def close(self, drain_seconds: float = 0.0) -> None:
        self._closing = True
        self._watching.cancel()
        if self._open and drain_seconds:
            await asyncio.wait(self._open.values(), timeout=drain_seconds)
        rest = list(self._open.values())
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        if self._llm.output_handler is not None:
            self._llm.output_handler.cancel()  # or it would take the end of vLLM's processes for a failure
        await asyncio.to_thread(self._llm.shutdown, EXIT_SECONDS)
        await asyncio.to_thread(self._leash.release)

    async def _serve(self, request: Running, adapter: LoraAdapter | None, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.time()
        async with asyncio.timeout(left):
            prompt = engine_input(request.prompt, self._projection)
            self._numbers += 1
            outputs = self._llm.generate(
                prompt, request.params, str(self._numbers), lora_request=self._adapters.request(adapter)
            )
            async with aclosing(outputs):  # leaving early aborts the request in vLLM
                async for output in outputs:
                    self._take(request, output)
                    if request.last and not output.finished:  # of a stop string vLLM knows nothing
                        break
        if request.last is None:
            raise Internal("vLLM ended the request without saying why")

    def _take(self, request: Running, output: Any) -> None:
        now, answer, made = time.perf_counter(), request.answer, output.outputs[0]
        if made.token_ids and not answer.ids:
            request.first_token = now
            self._first_tokens.append(now - request.submitted)
            self._count["prompt_tokens"] += request.prompt.positions
            self._count["cached_tokens"] += output.num_cached_tokens or 0
        logprobs = token_logprobs(made.token_ids, made.logprobs, request.params.logprobs)
        for token, logprob in zip(made.token_ids, logprobs, strict=True):
            answer.append(token, logprob)
            self._count["tokens"] += 1
            if answer.finish_reason:
                break
        if output.finished and not answer.finish_reason:
            if made.finish_reason not in ("stop", "length"):
                raise Internal(f"vLLM ended the request with {made.finish_reason}")
            answer.end(made.finish_reason)
        if answer.finish_reason:
            request.last = answer.take(_usage(request, output, now))
        elif self._due(request, now) and (delta := answer.take()):
            request.sent = now
            request.stream.push(delta)

    def _due(self, request: Running, now: float) -> bool:
        """Each piece costs its way to the client: a request's text goes once an interval, a short one while few run."""
        few = len(self._open) <= self._options.few
        return now - request.sent >= (self._options.few_interval if few else self._options.stream_interval)

    def _ended(self, request: Running, adapter: LoraAdapter | None, task: asyncio.Task[None]) -> None:
        del self._open[request]
        self._adapters.leave(adapter)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if request.last:  # whatever became of telling vLLM so
            self._count["finished"] += 1
            request.stream.push(request.last)
        elif error:
            outcome, named = self._named(error)
            self._count[outcome] += 1
            request.stream.push(named)

    def _named(self, error: BaseException) -> tuple[str, ZiyaError]:
        """What the request is counted as, and the error that its reader gets."""
        match error:
            case asyncio.CancelledError():
                return self._cancelled()
            case TimeoutError():
                return "expired", DeadlineExceeded("the deadline passed before the answer was complete")
            case VLLMClientError():
                return "failed", InvalidRequest(str(error))
            case EngineDeadError():  # `_watch` sees to it
                return "failed", Unavailable(GONE)
        log.error("a request failed in vLLM", exc_info=error)
        return "failed", error if isinstance(error, ZiyaError) else Internal("the engine failed in this request")

    def _cancelled(self) -> tuple[str, ZiyaError]:
        """By its reader, or by the end of the engine."""
        if self._gone or self._closing:
            return "failed", Unavailable(GONE if self._gone else CLOSING)
        return "cancelled", Cancelled("the request was cancelled")

    async def _watch(self) -> None:
        """vLLM tells of the end of its processes only those who wait for an answer."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self._llm.errored:
                break
        self._gone = True
        log.critical("vLLM's processes have ended by themselves")
        for task in self._open.values():
            task.cancel()
        self._dead()


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def _usage(request: Running, output: Any, now: float) -> Usage:
    times = output.metrics  # of vLLM's scheduler, by its own clock
    queued = max(0.0, times.scheduled_ts - times.queued_ts) if times else 0.0
    return Usage(
        prompt_tokens=request.prompt.positions,
        image_tokens=request.prompt.image_tokens,
        completion_tokens=len(request.answer.ids),
        queue_seconds=queued,
        prefill_seconds=max(0.0, request.first_token - request.submitted - queued),
        decode_seconds=now - request.first_token,
        cached_tokens=output.num_cached_tokens or 0,
    )
