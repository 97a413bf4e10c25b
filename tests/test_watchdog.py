"""A run that hangs ends with a stack that names where, and one that is asked to stop finishes its step first."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from training.errors import NonFinite
from training.stopping import StopSignal
from training.watchdog import Watchdog, check_finite

HANGS = """
import re, sys, threading
from pathlib import Path
from training.watchdog import Watchdog

def waits_for_a_dead_peer():
    threading.Event().wait()

def never_lets_go_of_the_interpreter():
    re.match("(a+)+$", "a" * 64 + "b")

folder = Path(sys.argv[1])
words = (folder / "last-words").write_text
with Watchdog(0.3, folder / "run", rank=3, last_words=words, report_seconds=float(sys.argv[3])) as watchdog:
    watchdog.beat("step 12")
    globals()[sys.argv[2]]()
"""

BEATS = """
import sys, threading, time
from pathlib import Path
from training.watchdog import Watchdog

pause = threading.Event()
with Watchdog(2.0, Path(sys.argv[1]), report_seconds=1.0) as watchdog:
    began = time.monotonic()
    while time.monotonic() < began + 4.5:
        watchdog.beat("step")
        pause.wait(0.05)
"""

STOPS = """
import threading
from training.stopping import StopSignal

pause = threading.Event()
with StopSignal() as stop:
    print("ready", flush=True)
    while not stop.requested:
        pause.wait(0.01)
    print(f"asked by {stop.received.name}", flush=True)
    pause.wait(SECONDS)
print("ended", flush=True)
"""


STOPS_AT_ONCE = """
import threading
from training.errors import Stopped
from training.stopping import stopping_at_once

try:
    with stopping_at_once("nothing to save"):
        print("ready", flush=True)
        threading.Event().wait()
except Stopped as error:
    print(error, error.exit_code)
"""


def python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_hang_ends_the_process_and_names_the_phase_and_the_function(tmp_path: Path) -> None:
    ended = python(HANGS, tmp_path, "waits_for_a_dead_peer", 30)
    assert ended.returncode == 1
    report = (tmp_path / "run" / "hang-rank3.txt").read_text()
    for text in (ended.stderr, report):
        assert text.startswith("rank 3 hangs: 'step 12' began at ")
        assert "waits_for_a_dead_peer" in text
    assert (tmp_path / "last-words").read_text().endswith("has not ended after 0.3 seconds")


def test_a_hang_inside_the_interpreter_is_ended_too(tmp_path: Path) -> None:
    ended = python(HANGS, tmp_path, "never_lets_go_of_the_interpreter", 0.7)
    assert ended.returncode == 1
    assert "never_lets_go_of_the_interpreter" in ended.stderr


def test_a_report_that_cannot_be_written_ends_the_process_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    ended = python(HANGS, tmp_path, "waits_for_a_dead_peer", 30)
    assert ended.returncode == 1
    assert "waits_for_a_dead_peer" in ended.stderr
    assert "the report of the hang cannot be written" in ended.stderr


def test_beats_keep_the_process_alive(tmp_path: Path) -> None:
    ended = python(BEATS, tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not list(tmp_path.iterdir())


def test_its_thread_lives_as_long_as_its_context(tmp_path: Path) -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "watchdog"]

    with Watchdog(3600.0, tmp_path):
        assert threads() == ["watchdog"]
    assert not threads()
    with Watchdog(None, tmp_path) as disabled:
        disabled.beat("step 1")
        assert not threads()


def test_numbers_that_are_not_finite_are_named() -> None:
    check_finite(1, {"lm": 2.0, "itc": 0.0}, 1e30)
    with pytest.raises(NonFinite, match="step 7: loss lm is nan, the gradient's norm is inf"):
        check_finite(7, {"itc": 1.0, "lm": math.nan}, math.inf)


def stopping(seconds: float) -> subprocess.Popen[str]:
    return started(STOPS.replace("SECONDS", str(seconds)))


def started(script: str) -> subprocess.Popen[str]:
    """Once it has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", script], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_has_nothing_to_save_stops_where_it_is(number: signal.Signals) -> None:
    process = started(STOPS_AT_ONCE)
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("nothing to save 75\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_only_raises_a_flag(number: signal.Signals) -> None:
    process = stopping(0.0)
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (0, f"asked by {number.name}\nended\n", "")


def test_the_second_interrupt_is_at_once() -> None:
    process = stopping(600.0)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "asked by SIGINT\n"
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert out == ""
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_handlers_of_before_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignal() as stop:
        assert not stop.requested
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.received is signal.SIGTERM
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
