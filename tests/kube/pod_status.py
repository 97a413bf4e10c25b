"""The status of a pod as the kubelet writes it: phase, conditions, and the state of each container."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.kube.objects import Object, timestamp, with_condition
from tests.kube.pod_facts import ADDRESS

MESSAGE_BYTES, LOG_BYTES = 4096, 2048


@dataclass
class ContainerState:
    """`code` is known when it has ended; `waiting` is why it has not started."""

    container: Object
    message_file: Path
    log: Path
    started_at: str = ""
    finished_at: str = ""
    code: int | None = None
    waiting: tuple[str, str] = ("ContainerCreating", "")

    def ended(self, code: int) -> None:
        self.code, self.finished_at = code, timestamp()

    def body(self) -> Object:
        running = bool(self.started_at) and self.code is None
        return {
            "name": self.container["name"],
            "image": self.container["image"],
            "imageID": "",
            "ready": running,
            "started": running,
            "restartCount": 0,
            "state": self._state(),
            "lastState": {},
        }

    def _state(self) -> Object:
        if self.code is not None:
            told: Object = {
                "exitCode": self.code,
                "reason": "Completed" if self.code == 0 else "Error",
                "startedAt": self.started_at or self.finished_at,
                "finishedAt": self.finished_at,
            }
            message = self._last_words()
            return {"terminated": told | ({"message": message} if message else {})}
        if self.started_at:
            return {"running": {"startedAt": self.started_at}}
        reason, message = self.waiting
        return {"waiting": {"reason": reason} | ({"message": message} if message else {})}

    def _last_words(self) -> str:
        words = _read(self.message_file)[:MESSAGE_BYTES]
        if not words and self.code and self.container.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            words = b"".join(_read(self.log).splitlines(keepends=True)[-80:])[-LOG_BYTES:]
        return words.decode(errors="replace")


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def write_status(pod: Object, containers: list[ContainerState], first: list[ContainerState], over: bool) -> None:
    """In place. `first` are init containers; `over` says that nothing will run any more."""
    status = pod.setdefault("status", {})
    codes = [each.code for each in [*first, *containers] if each.code is not None]
    running = any(each.started_at and each.code is None for each in containers)
    if over:
        failed = any(codes) or len([each for each in containers if each.code is not None]) < len(containers)
        status["phase"] = "Failed" if failed else "Succeeded"
    else:
        status["phase"] = "Running" if running or any(each.started_at for each in containers) else "Pending"
    status |= {"hostIP": ADDRESS, "podIP": ADDRESS, "podIPs": [{"ip": ADDRESS}], "hostIPs": [{"ip": ADDRESS}]}
    status.setdefault("startTime", timestamp())
    status["containerStatuses"] = [each.body() for each in containers]
    if first:
        status["initContainerStatuses"] = [each.body() for each in first]
    ready = not over and all(each.started_at and each.code is None for each in containers)
    reason = "" if ready else ("PodCompleted" if status["phase"] == "Succeeded" else "ContainersNotReady")
    if over and status["phase"] == "Failed":
        reason = "PodFailed"
    started = all(each.code == 0 for each in first)
    with_condition(status, "PodReadyToStartContainers", "False" if over else "True")
    with_condition(status, "Initialized", "True" if started else "False", "" if started else "ContainersNotInitialized")
    for name in ("Ready", "ContainersReady"):
        with_condition(status, name, "True" if ready else "False", reason)
