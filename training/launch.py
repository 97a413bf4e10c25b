"""`python -m training.launch JOB --stage NAME …`: one attempt of a stage under torchrun, whose exit code says why.

torchrun starts and watches the processes, on one machine by itself or on several by its own PET_* environment
(that is how a Kubernetes Job calls it). What it does not do is pass on the exit code of what it ran: 42 (do not
retry) and 75 (stopped after a checkpoint) both become 1. So the first process leaves its verdict in the stage's folder
and this program ends with it. SIGTERM goes to every process, which then have the grace period to save.

In a pod it also sees to the last words (training/last_words.py) of processes that were killed before they could speak.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from training.last_words import LastWords
from training.stage_folder import StageFolder


@dataclass(frozen=True)
class Attempt:
    """One try at one stage of a job; `number` is larger than any before it."""

    job: Path
    stage: str
    output: Path
    number: int

    def arguments(self) -> list[str]:
        """The command line of `training.run`."""
        place = ["--stage", self.stage, "--output", str(self.output), "--attempt", str(self.number)]
        return ["-m", "training.run", str(self.job), *place]


def launch(attempt: Attempt, processes: int, grace_seconds: int) -> int:
    """Runs `training.run` in `processes` processes on this machine; returns the exit code."""
    options = [f"--shutdown-timeout={grace_seconds}", "--max-restarts=0"]
    if "PET_NNODES" not in os.environ:
        # What --standalone stands for; torchrun itself turns it into this.
        alone = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", f"--rdzv-id={uuid.uuid4()}"]
        options += [*alone, f"--nproc-per-node={processes}"]
    config, command, arguments = config_from_args(parse_args([*options, *attempt.arguments()]))  # type: ignore[no-untyped-call]
    words, ended = LastWords.from_environment(), ""
    words.forget()
    stopped = False
    try:
        elastic_launch(config, command)(*arguments)
    except SignalException:
        stopped, ended = True, f"told to stop, and not done with it after {grace_seconds} seconds"
    except ChildFailedError as error:
        ended = _first_failure(error)
        print(f"stage {attempt.stage}: {ended}", file=sys.stderr)
    verdict = StageFolder(attempt.output / attempt.stage).verdict(attempt.number)
    code, reason = verdict or (128 + signal.SIGTERM if stopped else 1, ended)
    if code:
        words.failure(code, "Stopped" if stopped else "ChildFailed", reason)
    return code


def _first_failure(error: ChildFailedError) -> str:
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        return f"process {rank} was killed by {signal.Signals(-failure.exitcode).name}"
    return f"process {rank} ended with code {failure.exitcode}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.launch", description=__doc__)
    parser.add_argument("job", type=Path, help="the TrainingJob's YAML file")
    parser.add_argument("--stage", required=True)
    parser.add_argument("--output", type=Path, required=True, help="the job's output folder")
    parser.add_argument("--attempt", type=int, required=True, help="larger than any attempt before")
    parser.add_argument("--processes", type=int, default=1, help="on this machine, unless PET_* variables say it")
    parser.add_argument("--grace-seconds", type=int, default=30, help="from SIGTERM to SIGKILL")
    how = parser.parse_args()
    sys.exit(launch(Attempt(how.job, how.stage, how.output, how.attempt), how.processes, how.grace_seconds))


if __name__ == "__main__":
    main()
