"""What the processes of a stage print, while they run and after; of several nodes, each line with the node's number.

Following goes on from attempt to attempt until the stage is over. A connection that breaks is opened anew, and what was
printed before is passed over. When the pods are gone, what the operator kept of their end is shown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from urllib3.exceptions import HTTPError

from cli.text import CommandError
from cli.training_jobs import Object, TrainingJobs, stage_of

LOOK_SECONDS = 1.0
WITHOUT_PODS = ("data", "merge", "promote")


@dataclass(frozen=True)
class JobLogs:
    """Of one stage of one job (None: the one that it is at). `show` gets lines, `remark` what is not of the log."""

    jobs: TrainingJobs
    name: str
    stage: str | None
    show: Callable[[str], None]
    remark: Callable[[str], None]
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def print(self, attempt: int | None) -> None:
        """What there is now of one attempt, by default the newest. Raises CommandError."""
        job, state = self._look(self.stage)
        number = attempt or state.get("attempt", 0)
        if not number:
            raise CommandError(f"stage {state['name']!r} has not started yet: {self._hint()}")
        if not self._attempt(job, state, number, follow=False):
            self._remains(state, number)

    def follow(self, attempt: int | None) -> None:
        """That attempt and all after it, until the stage is over. Raises CommandError."""
        job, state = self._look(self.stage)
        stage, number = state["name"], attempt or max(state.get("attempt", 0), 1)
        while True:
            seen = self._attempt(job, state, number, follow=True)
            state = self._moved_on(stage, number)
            if state.get("attempt", 0) > number:
                number += 1
                self.remark(f"{stage}: attempt {number}")
                continue
            if not seen:
                self._remains(state, number)
            self.remark(f"{stage}: {state['phase']}")
            return

    def _moved_on(self, stage: str, attempt: int) -> Object:
        """The stage's state, once it has come to another attempt or to its end."""
        while True:
            _, state = self._look(stage)
            if _is_past(state, attempt):
                return state
            time.sleep(LOOK_SECONDS)

    def _look(self, stage: str | None) -> tuple[Object, Object]:
        job = self.jobs.get(self.name)
        spec, state = stage_of(job, stage)
        if spec["type"] in WITHOUT_PODS:
            raise CommandError(
                f"stage {spec['name']!r} is of type {spec['type']}: the operator does it without pods; {self._hint()}"
            )
        return job, state

    def _hint(self) -> str:
        return f"`ziya train status {self.name}` says how far it is"

    def _attempt(self, job: Object, state: Object, attempt: int, *, follow: bool) -> bool:
        """Shows the pods' logs to their end; False when there was none."""
        pods = self._waited(job, state["name"], attempt) if follow else self.jobs.pods(job, state["name"], attempt)
        if not pods:
            return False
        marks = [f"[{number}] " for number in range(len(pods))] if len(pods) > 1 else [""]
        shown, errors = [False] * len(pods), list[CommandError]()

        def show(number: int) -> None:
            try:
                shown[number] = self._pod(pods[number], marks[number], follow)
            except CommandError as error:
                errors.append(error)

        # Daemons: who presses Ctrl-C does not wait for pods that print nothing.
        threads = [threading.Thread(target=show, args=(number,), daemon=True) for number in range(len(pods))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return any(shown)

    def _waited(self, job: Object, stage: str, attempt: int) -> list[str]:
        """The pods of the attempt, once there are as many as it has nodes; none when it is over without any."""
        spec, _ = stage_of(job, stage)
        while True:
            pods = self.jobs.pods(job, stage, attempt)
            if len(pods) >= spec.get("parallelism", {}).get("nodes", 1):
                return pods
            _, state = self._look(stage)
            if _is_past(state, attempt) or (pods and state.get("phase") not in ("Pending", "Queued", "Running")):
                return pods
            time.sleep(LOOK_SECONDS)

    def _pod(self, pod: str, mark: str, follow: bool) -> bool:
        shown = 0
        while True:
            response = self.jobs.log(pod, follow=follow)
            if response is None:  # not started, or gone
                if not follow or not self.jobs.has_pod(pod):
                    return shown > 0
                time.sleep(LOOK_SECONDS)
                continue
            try:
                for number, line in enumerate(_lines(response)):
                    if number >= shown:
                        with self._one_at_a_time:
                            self.show(f"{mark}{line}")
                        shown += 1
                return True
            except HTTPError:
                time.sleep(LOOK_SECONDS)

    def _remains(self, state: Object, attempt: int) -> None:
        """What the operator kept, for lack of pods. Raises CommandError when that is nothing."""
        failure = state.get("lastFailure", {})
        if failure.get("attempt") != attempt or not failure.get("logTail"):
            raise CommandError(
                f"the pods of attempt {attempt} of stage {state['name']!r} are gone, and their log with them; "
                "results lie in the job's output claim"
            )
        self.remark(
            f"the pods of attempt {attempt} are gone; the last lines of {failure.get('pod', 'one of them')} were"
        )
        for line in failure["logTail"].splitlines():
            self.show(line)


def _is_past(state: Object, attempt: int) -> bool:
    newest: int = state.get("attempt", 0)
    return newest > attempt or state.get("phase") in ("Succeeded", "Failed")


def _lines(response: Any) -> Iterator[str]:
    """As they come, the last one even without its end."""
    left = b""
    try:
        for data in response.stream(amt=None, decode_content=False):
            *whole, left = (left + data).split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in whole)
        if left:
            yield left.decode("utf-8", "replace")
    finally:
        response.release_conn()
