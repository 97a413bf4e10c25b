"""What can go wrong between a client and the API, on demand: slow, refused, cut off, unheard."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from random import Random

from tests.kube.errors import ApiError

_REASONS = {429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable", 504: "Timeout"}


@dataclass
class Fault:
    """Meets requests by verb, resource (`jobs`, `jobs/status`) and account; all three are shell patterns."""

    verb: str = "*"
    resource: str = "*"
    account: str = "*"
    times: int | None = None
    probability: float = 1.0
    latency: float = 0.0
    status: int | None = None
    retry_after: int | None = None
    lose_answer: bool = False
    met: int = field(default=0, init=False)

    def fits(self, verb: str, resource: str, account: str) -> bool:
        return fnmatch(verb, self.verb) and fnmatch(resource, self.resource) and fnmatch(account, self.account)

    def error(self) -> ApiError | None:
        if self.status is None:
            return None
        error = ApiError(self.status, _REASONS.get(self.status, "Unknown"), "a fault that the test asked for")
        if self.retry_after is not None:
            error.headers["Retry-After"] = str(self.retry_after)
            error.details = {"retryAfterSeconds": self.retry_after}
        return error


class Faults:
    """The faults of one cluster. `times` counts down; what is over is taken off by itself."""

    def __init__(self, seed: int = 0) -> None:
        self._random = Random(seed)
        self._active: list[Fault] = []
        self._watches: dict[int, tuple[str, Callable[[], object]]] = {}
        self._numbers = itertools.count()
        self.on_partition: Callable[[bool], None] = lambda cut: None

    def add(self, fault: Fault) -> Fault:
        self._active.append(fault)
        return fault

    def fail(self, status: int, *, verb: str = "*", resource: str = "*", account: str = "*", times: int | None = 1,
             probability: float = 1.0, retry_after: int | None = None) -> Fault:  # fmt: skip
        """Answers with this status instead of doing what was asked."""
        return self.add(Fault(verb, resource, account, times, probability, status=status, retry_after=retry_after))

    def delay(self, seconds: float, *, verb: str = "*", resource: str = "*", account: str = "*",
              times: int | None = None) -> Fault:  # fmt: skip
        """Does what was asked, later."""
        return self.add(Fault(verb, resource, account, times, latency=seconds))

    def lose_answers(self, *, verb: str = "*", resource: str = "*", account: str = "*", times: int | None = 1) -> Fault:
        """Does what was asked and hangs up, so that the client does not know."""
        return self.add(Fault(verb, resource, account, times, lose_answer=True))

    def remove(self, fault: Fault) -> None:
        if fault in self._active:
            self._active.remove(fault)

    def clear(self) -> None:
        self._active.clear()

    def drop_watches(self, resource: str = "*") -> int:
        """Hangs up on open watches, without a word; how many there were."""
        doomed = [close for name, close in list(self._watches.values()) if fnmatch(name, resource)]
        for close in doomed:
            close()
        return len(doomed)

    def partition(self) -> None:
        """From now on nobody is answered: connections are cut and refused, until `heal`."""
        self.on_partition(True)

    def heal(self) -> None:
        self.on_partition(False)

    @contextmanager
    def partitioned(self) -> Iterator[None]:
        self.partition()
        try:
            yield
        finally:
            self.heal()

    def meet(self, verb: str, resource: str, account: str) -> list[Fault]:
        """Those that this request meets now."""
        met = []
        for fault in list(self._active):
            if not fault.fits(verb, resource, account) or self._random.random() >= fault.probability:
                continue
            fault.met += 1
            if fault.times is not None and fault.met >= fault.times:
                self.remove(fault)
            met.append(fault)
        return met

    @contextmanager
    def watch_open(self, resource: str, close: Callable[[], object]) -> Iterator[None]:
        """While it lasts, `drop_watches` reaches this watch."""
        number = next(self._numbers)
        self._watches[number] = resource, close
        try:
            yield
        finally:
            self._watches.pop(number, None)

    @property
    def open_watches(self) -> list[str]:
        """The resources that are being watched now."""
        return [name for name, _ in list(self._watches.values())]
