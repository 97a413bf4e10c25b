"""How commands speak: progress and answers on stdout, problems as one plain sentence on stderr."""

from __future__ import annotations

import sys


class CommandError(Exception):
    """What went wrong, in a sentence for the person at the keyboard; ends the command with `status`."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def say(line: str = "", *, end: str = "\n") -> None:
    """Prints at once, whoever reads."""
    print(line, end=end, flush=True)


def remark(line: str) -> None:
    """What is not the answer itself, on stderr."""
    print(line, file=sys.stderr, flush=True)


def complain(error: Exception) -> None:
    print(f"ziya: {error}", file=sys.stderr, flush=True)
