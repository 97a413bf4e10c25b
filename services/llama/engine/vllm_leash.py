"""vLLM's processes end with ours: a kill of this one would leave them behind, with their memory and the GPU's.

The watcher is `services.llama.lifeline`'s, which holds one end of a pipe whose other end lives here.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable

from services.llama import lifeline


class Leash:
    """Of the processes with these ids; their own children end with them. Blocks for milliseconds."""

    def __init__(self, pids: Iterable[int]) -> None:
        python = shutil.which("python3") or sys.executable
        self._watchers = [
            subprocess.Popen(
                [python, "-I", "-S", lifeline.__file__, str(pid)], stdin=subprocess.PIPE, start_new_session=True
            )
            for pid in pids
        ]

    def release(self) -> None:
        """They have ended, or may go on. Harmless the second time."""
        while self._watchers:
            self._watchers.pop().communicate(lifeline.GOODBYE)
