"""The supervisor with small real programs: restart, giving up, order of stopping, and nothing outliving it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from cli.supervisor import GaveUp, Patience, Program, supervise

QUICK = Patience(quick_deaths=3, first_delay=0.01, longest_delay=0.01)


def python(name: str, code: str, **options: object) -> Program:
    return Program(name, (sys.executable, "-I", "-S", "-c", textwrap.dedent(code)), **options)  # type: ignore[arg-type]


SLEEP = "import time; print('up', flush=True); time.sleep(600)"


async def log_holds(path: Path, text: str, times: int = 1) -> None:
    async with asyncio.timeout(30):
        while path.read_text("utf-8").count(text) < times:
            await asyncio.sleep(0.01)


async def test_what_dies_is_started_again_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    async with supervise([python("sleeper", SLEEP)], tmp_path, said.append) as [child]:
        await log_holds(child.log, "up")
        first = child.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await log_holds(child.log, "up", times=2)
        assert child.pid not in (None, first)
    assert child.pid is None
    assert "sleeper was killed by SIGKILL; starting it again" in said[0]


async def until_given_up(programs: list[Program], folder: Path, *, proven: bool) -> tuple[str, list[str]]:
    """Runs the programs until one is given up; the complaint, and what was said before."""
    said: list[str] = []
    try:
        async with supervise(programs, folder, said.append, QUICK) as children:
            for child in children:
                child.proven = proven
            await asyncio.Event().wait()
    except GaveUp as failure:
        return str(failure), said
    raise AssertionError("nothing was given up")


async def test_a_program_that_does_not_stay_up_is_given_up_with_the_end_of_its_log(tmp_path: Path) -> None:
    programs = [python("sleeper", SLEEP), python("broken", "import sys; print('no such weights'); sys.exit(3)")]
    complaint, said = await until_given_up(programs, tmp_path, proven=True)
    assert complaint.startswith("broken ended with status 3 and was given up.")
    assert complaint.count("no such weights") == 1
    assert len(said) == QUICK.quick_deaths - 1


async def test_a_program_that_ends_before_it_ever_worked_is_not_tried_again(tmp_path: Path) -> None:
    line = '{"level": "ERROR", "msg": "the weights are damaged"}'
    complaint, said = await until_given_up([python("broken", f"print('{line}'); 1 / 0")], tmp_path, proven=False)
    assert "  ERROR: the weights are damaged" in complaint
    assert said == []


async def test_wrong_settings_are_not_tried_again(tmp_path: Path) -> None:
    strict = python("strict", "import sys; print('ZIYA_X is not a setting'); sys.exit(2)")
    complaint, said = await until_given_up([strict], tmp_path, proven=True)
    assert "ZIYA_X is not a setting" in complaint
    assert said == []


async def test_a_program_that_cannot_be_run_says_which(tmp_path: Path) -> None:
    complaint, _ = await until_given_up([Program("ghost", ("/no-such-program",))], tmp_path, proven=False)
    assert "cannot run /no-such-program: No such file" in complaint


async def test_programs_stop_in_the_order_of_their_ranks(tmp_path: Path) -> None:
    report = tmp_path / "order"
    code = f"""
        import signal, sys
        def stop(*_):
            with open({str(report)!r}, "a") as out:
                out.write(sys.argv[1] + " ")
            sys.exit()
        signal.signal(signal.SIGTERM, stop)
        print("up", flush=True)
        while True:
            signal.pause()
    """
    programs = [
        Program(name, (*python(name, code).argv, name), stop_rank=rank)
        for name, rank in (("last", 3), ("first", 1), ("second", 2))
    ]
    async with supervise(programs, tmp_path, print) as children:
        for child in children:
            await log_holds(child.log, "up")
    assert report.read_text().split() == ["first", "second", "last"]


async def test_a_program_deaf_to_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    async with supervise([python("deaf", deaf, grace=0.1)], tmp_path, print) as [child]:
        await log_holds(child.log, "up")
    assert child.pid is None


async def test_what_a_program_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    code = f"""
        import subprocess, sys, time
        print(subprocess.Popen([sys.executable, "-I", "-S", "-c", {SLEEP!r}]).pid, flush=True)
        time.sleep(600)
    """
    async with supervise([python("parent", code)], tmp_path, print) as [child]:
        await log_holds(child.log, "up")
        grandchild = psutil.Process(int(child.log.read_text("utf-8").split()[0]))
    gone, alive = await asyncio.to_thread(psutil.wait_procs, [grandchild], timeout=30)
    assert not alive
    assert gone


async def test_an_error_of_the_body_comes_out_as_it_is_and_stops_everything(tmp_path: Path) -> None:
    children = []

    async def body() -> None:
        async with supervise([python("sleeper", SLEEP)], tmp_path, print) as [child]:
            children.append(child)
            await log_holds(child.log, "up")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await body()
    assert children[0].pid is None


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    code = f"""
        import asyncio, sys
        from pathlib import Path
        from cli.supervisor import Program, supervise
        async def main():
            program = Program("sleeper", (sys.executable, "-I", "-S", "-c", {SLEEP!r}))
            async with supervise([program], Path({str(tmp_path)!r}), print) as [child]:
                while not child.log.read_text():
                    await asyncio.sleep(0.01)
                print(child.pid, flush=True)
                await asyncio.Event().wait()
        asyncio.run(main())
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        sleeper = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    psutil.wait_procs([sleeper], timeout=30)
    assert not sleeper.is_running()
