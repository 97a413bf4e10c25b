"""Where a running stack keeps its logs, its socket and its addresses, and how `ziya ask` finds it.

A stack holds a lock on its folder while it runs, so that a folder whose owner was killed is known to be
free: no pid is ever trusted. By default folders lie under `$XDG_STATE_HOME/ziya` (`~/.local/state/ziya`):
`stack`, then `stack-2` and so on for stacks side by side.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import IO

from cli.text import CommandError

SOCKET_NAME_BYTES = 100  # the kernel's limit is 107


@dataclass(frozen=True)
class Addresses:
    """Where a ready stack listens, as `host:port`; what `stack.json` holds."""

    http: str
    grpc: str
    vision: str
    qformer: str
    triton_http: str
    triton_grpc: str
    redis: str
    gateway_metrics: str = ""
    vision_metrics: str = ""
    qformer_metrics: str = ""
    triton_metrics: str = ""

    @property
    def url(self) -> str:
        return f"http://{self.http}"


class StackFolder:
    """The folder of one running stack, locked until `close`."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self.logs = path / "logs"
        self._lock = lock
        self._elsewhere: Path | None = None

    def socket(self, name: str) -> Path:
        """Path for a Unix socket: in this folder, unless that name is too long for the kernel."""
        path = self.path / name
        if len(os.fsencode(path)) > SOCKET_NAME_BYTES:
            self._elsewhere = self._elsewhere or Path(tempfile.mkdtemp(prefix="ziya-"))
            path = self._elsewhere / name
        return path

    def publish(self, addresses: Addresses) -> None:
        draft = self.path / "stack.json.new"
        draft.write_text(json.dumps(asdict(addresses), indent=2) + "\n", "utf-8")
        draft.replace(self.path / "stack.json")

    def close(self) -> None:
        (self.path / "stack.json").unlink(missing_ok=True)
        if self._elsewhere:
            shutil.rmtree(self._elsewhere, ignore_errors=True)
        self._lock.close()


def home() -> Path:
    root = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(root) / "ziya"


def claim(folder: Path | None) -> StackFolder:
    """Locks `folder`, or the first free default one. Raises CommandError when a given folder is in use."""
    for path in [folder.absolute()] if folder else _default_folders():
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / "lock").open("w")
        if _try_lock(lock):
            return StackFolder(path, lock)
        lock.close()
    raise CommandError(f"another `ziya up` is running in {folder}; stop it, or give another --state-dir")


def running(folder: Path | None = None) -> list[tuple[Path, Addresses]]:
    """The ready stacks: the one in `folder`, or all in the default place, first folder first."""
    found = []
    for path in [folder] if folder else sorted(home().glob("stack*")):
        description, lock = path / "stack.json", path / "lock"
        if description.is_file() and lock.is_file() and _is_locked(lock):
            found.append((path, Addresses(**json.loads(description.read_text("utf-8")))))
    return found


def only_stack() -> Addresses:
    """The first ready stack of the default place. Raises CommandError when there is none."""
    stacks = running()
    if not stacks:
        raise CommandError("no stack is running on this machine: start one with `ziya up`, or name one with --url")
    return stacks[0][1]


def _default_folders() -> Iterator[Path]:
    yield home() / "stack"
    for number in count(2):
        yield home() / f"stack-{number}"


def _try_lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(path: Path) -> bool:
    with path.open() as lock:
        return not _try_lock(lock)
