"""An event loop under which gRPC's events are not held up by its own alarm bell.

grpc.aio (seen in grpcio 1.85) has a thread that takes events from gRPC's core. For each it puts one byte into a
socket pair, to wake the loop; woken, the loop handles all events that are there and takes one byte out. So under load
bytes are left over. They cost an idle turn of the loop each, and after about 278 of them the pair is full: the thread
waits in `write`, and every event of the process, those of new calls among them, comes one a turn. Here all bytes are
taken at once.

A byte is written after its event is there, so whoever takes bytes first and events then misses none.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

_ALARM = "PollerCompletionQueue"
_AT_ONCE = 4096
ResultT = TypeVar("ResultT")


class PromptGrpc:
    """To be mixed into a loop's class, before it."""

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        """As the loop's own; gRPC's callback finds one byte, as it expects, however many there are."""
        if isinstance(fd, socket.socket) and _is_grpcs(callback):
            callback = functools.partial(_one_for_all, fd, callback)
        super().add_reader(fd, callback, *args)  # type: ignore[misc]


class EventLoop(PromptGrpc, asyncio.SelectorEventLoop):  # type: ignore[misc]  # the mixin knows no loop
    """asyncio's own loop, so."""


def run(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """As `asyncio.run`, on such a loop."""
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        return runner.run(work)


def _is_grpcs(callback: Callable[..., Any]) -> bool:
    """A later gRPC may call it otherwise, and is then served as by any loop."""
    method = callback.func if isinstance(callback, functools.partial) else callback
    return type(getattr(method, "__self__", None)).__name__ == _ALARM


def _one_for_all(bell: socket.socket, callback: Callable[..., Any], *args: Any) -> None:
    with suppress(BlockingIOError):  # a loop of another thread was faster
        rung = len(bell.recv(_AT_ONCE, socket.MSG_PEEK))
        if rung > 1:
            bell.recv(rung - 1)
    callback(*args)
