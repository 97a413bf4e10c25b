"""Single keys from a terminal, without waiting for Return; the terminal is as before when it is over."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def keys() -> Iterator[asyncio.Queue[str]]:
    """A queue of what is typed; nothing comes when the input is no terminal."""
    typed: asyncio.Queue[str] = asyncio.Queue()
    if not sys.stdin.isatty():
        yield typed
        return
    number, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(number)
    tty.setcbreak(number)
    loop.add_reader(number, lambda: typed.put_nowait(os.read(number, 32).decode(errors="replace")))
    try:
        yield typed
    finally:
        loop.remove_reader(number)
        termios.tcsetattr(number, termios.TCSADRAIN, before)
