"""The vllm engine conforms. Needs vLLM, so an environment of its own: `make test-vllm` makes one and runs this."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
import torch

pytest.importorskip("vllm", reason="make test-vllm")

from services.llama.engine.frame import read_frame
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Engine, Prompt
from services.llama.engine.vllm_engine import VllmEngine
from services.llama.engine.vllm_options import VllmOptions, prepare_process
from tests.engine_conformance import Conformance
from tests.engine_questions import (
    ENDLESS,
    KV_POSITIONS,
    OPTIONS,
    PROMPT,
    SLOTS,
    Start,
    conforming_checkpoint,
    drained,
    greedy,
    image,
    text,
)
from tests.engines import ask, reference
from ziya.errors import InvalidRequest, Unavailable


@asynccontextmanager
async def vllm_on(checkpoint: Path, dead: Callable[[], None] = lambda: None, **options: Any) -> AsyncIterator[Engine]:
    """vLLM keeps a block for itself."""
    chosen = VllmOptions(eager=True, **OPTIONS | options)
    prepare_process(chosen)
    engine = await VllmEngine.start(read_frame(checkpoint, torch.float32), chosen, dead)
    try:
        yield engine
    finally:
        await engine.close()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conforming_checkpoint(tmp_path_factory.mktemp("conforming") / "tiny")


@pytest.fixture(scope="session")
def start(checkpoint: Path) -> Start:
    return partial(vllm_on, checkpoint, kv_positions=KV_POSITIONS)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine(start: Start) -> AsyncIterator[Engine]:
    """One for all tests: vLLM takes long to start."""
    async with start(adapters=2) as engine:
        yield engine


@pytest.mark.asyncio(loop_scope="module")
class TestVllmEngine(Conformance):
    async def test_what_vllm_does_not_do_is_refused(self, engine: Engine) -> None:
        with pytest.raises(InvalidRequest, match="temperature from 0 to 2"):
            engine.submit(PROMPT, Sampling(temperature=3.0))

    async def test_any_seed_will_do(self, engine: Engine) -> None:
        for seed in (-1, -(1 << 63), (1 << 64) - 1):
            sampling = replace(greedy(3), temperature=1.0, seed=seed)
            assert (await ask(engine, PROMPT, sampling)).ids == (await ask(engine, PROMPT, sampling)).ids

    async def test_prompts_in_chunks_are_transformers(self, start: Start, checkpoint: Path) -> None:
        """As on a GPU; 24 tokens a step, and images that lie across the border of two chunks."""
        prompts = [Prompt((text(n, 15 + 7 * n), text(n, 130)), (image(n),)) for n in range(SLOTS)]
        async with start(chunked=True) as engine:
            answers = await asyncio.gather(*(ask(engine, prompt, greedy(20)) for prompt in prompts))
        for answer, prompt in zip(answers, prompts, strict=True):
            assert answer.ids == reference(checkpoint, prompt, 20, eos_token_id=None)

    async def test_the_end_of_vllms_processes_is_noticed(self, start: Start) -> None:
        """What runs fails, what comes later is refused, and whoever started the engine is told."""
        before, told = children(), list[str]()
        async with start(dead=lambda: told.append("dead")) as engine:
            assert (await ask(engine, PROMPT, greedy(2))).ids
            stream = engine.submit(PROMPT, ENDLESS)
            await anext(stream)
            for process in children() - before:
                if is_core(process):
                    process.kill()
            with pytest.raises(Unavailable, match="have ended"):
                await drained(stream)
            while not told:
                await asyncio.sleep(0.05)
            assert told == ["dead"]
            with pytest.raises(Unavailable, match="have ended"):
                engine.submit(PROMPT, greedy(2))

    async def test_vllms_processes_end_with_ours(self, checkpoint: Path) -> None:
        """Another process with an engine is killed: nothing of it may go on."""
        code = "import sys, tests.test_vllm_engine as here; here.serve(sys.argv[1])"
        command = [sys.executable, "-c", code, str(checkpoint)]
        owner = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert owner.stdout is not None
        try:
            while (line := await owner.stdout.readline()) != b"serving\n":
                assert line, "it ended before it served"
            theirs = psutil.Process(owner.pid).children(recursive=True)
            assert [process for process in theirs if is_core(process)]
        finally:
            owner.kill()
            await owner.wait()
        while any(map(runs, theirs)):
            await asyncio.sleep(0.05)


def serve(checkpoint: str) -> None:
    """An engine until somebody kills the process."""

    async def forever() -> None:
        async with vllm_on(Path(checkpoint)) as engine:
            assert (await ask(engine, PROMPT, greedy(2))).ids
            print("serving", flush=True)  # noqa: T201
            await asyncio.Event().wait()

    asyncio.run(forever())


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def is_core(process: psutil.Process) -> bool:
    return process.name().startswith("VLLM::Engine")


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
