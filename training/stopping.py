"""A wish to stop, as a flag that the loop reads between two steps.

Kubernetes, torchrun and a person at the terminal all ask by a signal (SIGTERM, SIGTERM, Ctrl-C). The handler only
notes it: the processes then agree on a step, publish its checkpoint and end. Who presses Ctrl-C a second
time does not want to wait for that, and gets KeyboardInterrupt at once. What has nothing to save stops where it is.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, TypeVar

from training.errors import Stopped

T = TypeVar("T")


class StopSignal:
    """A context on the main thread; handlers of before come back at its end."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._interrupts = 0
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        return self.received is not None

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that was not set from Python; it cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number)
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt


def run(main: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run, on the main thread. Raises KeyboardInterrupt after Ctrl-C, when what `main` began has ended.

    asyncio.run's own handler leaves a note that the loop reads with its next event: a Ctrl-C in the moment in which the
    loop falls asleep would wait for that, and with a server that hangs nothing may come for minutes.
    """
    return asyncio.run(_interruptible(main))


async def _interruptible(main: Coroutine[Any, Any, T]) -> T:
    loop, task, interrupts = asyncio.get_running_loop(), asyncio.ensure_future(main), list[int]()

    def interrupt() -> None:
        loop.remove_signal_handler(signal.SIGINT)  # the second one raises KeyboardInterrupt wherever it is
        interrupts.append(signal.SIGINT)
        task.cancel()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        if interrupts:
            raise KeyboardInterrupt from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGINT)


@contextmanager
def stopping_at_once(reason: str) -> Iterator[None]:
    """SIGTERM and Ctrl-C raise Stopped wherever the block is. On the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(reason)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
