"""All stages of a TrainingJob on this machine, one after another: what `ziya train run` does.

Each stage runs in processes of its own (`training/launch.py`), exactly as it does on a cluster, and leaves its result
in its folder; the next one starts from the model of the one before. A stage that is done is skipped, so running the
same command again goes on where the last run ended, whatever ended it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from training.errors import EXIT_BAD_CONFIG, EXIT_STOPPED, BadConfig, Stopped, TrainingError
from training.job import Stage, TrainingJob, load
from training.launch import Attempt
from training.pieces import Pieces
from training.stage_folder import StageFolder
from ziya.leash import on_leash

Say = Callable[[str], None]
ENVIRONMENT = {
    # Threads that spin while they wait take the cores from the loader's processes, and those that sleep at once are
    # woken too late for small products. So they spin for a moment.
    "GOMP_SPINCOUNT": "20000",
    "TOKENIZERS_PARALLELISM": "false",
    # glibc gives a large tensor's pages back when it is freed, and the next step faults them in again: 15 % of a small
    # step on a CPU. These keep them (32 MiB is the largest threshold it takes).
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


@dataclass
class LocalRun:
    """One TrainingJob file and the folder its results go to. `run` raises TrainingError with the stage's reason."""

    file: Path
    output: Path
    say: Say
    _child: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _asked_to_stop: bool = field(default=False, init=False)

    def run(self, only: str | None = None) -> None:
        """Runs all stages, or only the one named `only`."""
        job = load(self.file)
        names = [stage.name for stage in job.spec.stages]
        if only is not None and only not in names:
            raise BadConfig(f"{self.file} has no stage {only!r}; its stages are {', '.join(names)}")
        self.output.mkdir(parents=True, exist_ok=True)
        with self._alone(), self._passing_on_signals():
            copy = self.output / "job.yaml"
            if not (copy.exists() and copy.samefile(self.file)):
                shutil.copyfile(self.file, copy)
            for stage in job.spec.stages:
                if only in (None, stage.name):
                    self._stage(job, stage)

    def _stage(self, job: TrainingJob, stage: Stage) -> None:
        folder = StageFolder(self.output / stage.name)
        if folder.is_done:
            self.say(f"{stage.name}: done before")
        elif stage.type == "promote":
            self.say(f"{stage.name}: skipped, promoting a model to serving needs a cluster")
        elif stage.type == "merge":
            self.say(f"{stage.name}: nothing to do, every stage with LoRA leaves a merged model")
        elif stage.type == "data":
            self._data(stage, folder)
        else:
            self._attempts(stage, folder, job)

    def _data(self, stage: Stage, folder: StageFolder) -> None:
        """Builds what is missing of its pieces."""
        pieces = Pieces(stage, folder)
        for number in pieces.missing():
            piece = f" (piece {number + 1} of {stage.shards})" if stage.shards > 1 else ""
            self.say(f"{stage.name}: building the data with {stage.builder}{piece}")
            pieces.build(number)
            if self._asked_to_stop:
                raise Stopped(f"{stage.name}: stopped after a piece; the same command goes on from there")
        if not folder.is_done:
            pieces.build(0)  # which is there, but somebody has removed the stage's done.json

    def _attempts(self, stage: Stage, folder: StageFolder, job: TrainingJob) -> None:
        left = stage.retry.limit
        while True:
            attempt = Attempt(self.output / "job.yaml", stage.name, self.output, folder.next_attempt())
            code = self._launch(attempt, stage)
            if code == 0:
                return
            known = folder.verdict(attempt.number)
            reason = known[1] if known else f"ended with code {code} and without a word"
            if code == EXIT_STOPPED or self._asked_to_stop:
                raise Stopped(f"{stage.name}: {reason}; the same command goes on from there")
            if code == EXIT_BAD_CONFIG:
                raise BadConfig(f"{stage.name}: {reason}")
            if left == 0:
                raise TrainingError(f"{stage.name}: {reason}; see {folder.path}")
            left -= 1
            self.say(f"{stage.name}: {reason}; trying again ({left} tries left)")

    def _launch(self, attempt: Attempt, stage: Stage) -> int:
        processes = stage.parallelism.procs_per_node
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // processes))
        environment = {**ENVIRONMENT, **os.environ}
        environment["OMP_NUM_THREADS"] = threads
        command = [sys.executable, *attempt.arguments()]
        if processes > 1:
            place = ["--stage", stage.name, "--output", str(self.output), "--attempt", str(attempt.number)]
            many = ["--processes", str(processes), "--grace-seconds", str(stage.checkpoint.grace_seconds)]
            command = [sys.executable, "-m", "training.launch", str(attempt.job), *place, *many]
        # A session of its own: a Ctrl-C reaches it once, through us.
        self._child = subprocess.Popen([*on_leash(signal.SIGTERM), *command], env=environment, start_new_session=True)
        if self._asked_to_stop:
            self._child.terminate()
        code = self._child.wait()
        self._child = None
        return code

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two runs in one folder would change each other's job and refuse each other's checkpoints."""
        with (self.output / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                busy = f"{self.output}: another run is at work there; wait for it, or take another --output"
                raise BadConfig(busy) from error
            yield

    @contextmanager
    def _passing_on_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C let the running stage save and stop; a second Ctrl-C ends it at once."""

        def pass_on(number: int, frame: FrameType | None) -> None:
            again, self._asked_to_stop = self._asked_to_stop, True
            if self._child is not None:
                self._child.send_signal(signal.SIGKILL if again and number == signal.SIGINT else signal.SIGTERM)

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
