"""When the model's process dies, its server must die too.

Triton's Python backend runs the model in a process of its own. Should that one be killed (by the kernel, for
memory), Triton 2.51 goes on saying that it is ready, while open requests hang and new ones fail: worse than being
down, since nobody restarts it. So a small watcher holds one end of a pipe whose other end lives in the model's
process. The end of the pipe without a goodbye is a death, and the watcher stops the server, which whoever
supervises it (`ziya up`, the kubelet) then starts again.

    python -I lifeline.py SERVER_PID        reads its standard input
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

GOODBYE = b"."
# SIGTERM would have Triton try to unload a model that is gone. SIGABRT ends it at once, also where it is the first
# process of a container, which SIGKILL from inside cannot reach.
SIGNALS = (signal.SIGABRT, signal.SIGKILL)
GRACE_SECONDS = 2.0


class Lifeline:
    """Holds the pipe; make it in the model's process, whose parent is the server."""

    def __init__(self) -> None:
        server = os.getppid()
        if "triton" not in Path(f"/proc/{server}/comm").read_text():
            raise RuntimeError(f"the parent process {server} is not a Triton server (any more)")
        # Inside Triton sys.executable need not be an interpreter; the first python3 on PATH is the model's own.
        python = shutil.which("python3") or sys.executable
        self._watcher = subprocess.Popen(
            [python, "-I", "-S", __file__, str(server)], stdin=subprocess.PIPE, start_new_session=True
        )

    def release(self) -> None:
        """The model ends as it should: the watcher goes without doing anything."""
        self._watcher.communicate(GOODBYE)


def watch(server: int) -> None:
    """Returns at the goodbye, or when the server has been ended. A pid that is used again is never touched."""
    try:
        handle = os.pidfd_open(server)
    except ProcessLookupError:
        return
    if sys.stdin.buffer.read(1) == GOODBYE:
        return
    for number in SIGNALS:
        try:
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return
        if select.select([handle], [], [], GRACE_SECONDS)[0]:
            return


if __name__ == "__main__":
    watch(int(sys.argv[1]))
