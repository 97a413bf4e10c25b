"""Ctrl-C ends what runs in an event loop, also while the loop sleeps and nothing would ever wake it."""

from __future__ import annotations

import asyncio
import signal
import sys

import pytest

WAITING = """
import asyncio
from training.stopping import run

async def main():
    print("asleep", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("tidied", flush=True)
        {after}

try:
    run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


async def child(after: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    started = await asyncio.create_subprocess_exec(sys.executable, "-c", WAITING.format(after=after), stdout=pipe)
    assert started.stdout is not None
    assert await started.stdout.readline() == b"asleep\n"
    return started


async def test_what_waits_is_cancelled_and_ends_tidily() -> None:
    waiting = await child("await asyncio.sleep(0)")
    waiting.send_signal(signal.SIGINT)
    out, _ = await waiting.communicate()
    assert (out, waiting.returncode) == (b"tidied\ninterrupted\n", 0)


async def test_a_second_one_does_not_wait_for_the_tidying() -> None:
    waiting = await child("await asyncio.Event().wait()")
    waiting.send_signal(signal.SIGINT)
    assert waiting.stdout is not None
    assert await waiting.stdout.readline() == b"tidied\n"
    # It may come while the loop has not slept again; who is not heard presses once more.
    while waiting.returncode is None:
        waiting.send_signal(signal.SIGINT)
        await asyncio.wait({asyncio.create_task(waiting.wait())}, timeout=0.5)
    out, _ = await waiting.communicate()
    assert (out, waiting.returncode) == (b"interrupted\n", 0)


@pytest.mark.parametrize("value", [0, None])
async def test_what_ends_by_itself_gives_its_value(value: object) -> None:
    code = f"import asyncio\nfrom training.stopping import run\nprint(run(asyncio.sleep(0, {value!r})))"
    done = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert (await done.communicate())[0].decode() == f"{value}\n"
