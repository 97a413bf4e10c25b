"""What may be worked on at once, in images and tokens as well as requests, and who waits for it.

There is a door and behind it a short queue. The door bounds all that is inside, bodies that are still being read, too.
In the queue a checked request waits for room, in the order of fair_order.py, for `wait_seconds` at most and not beyond
its deadline: a client who is told to come back after a second is better off than one who waits without knowing. When
either is full, whoever gives way by that same order is refused, which need not be the one who comes.

Where only images are scarce, a request without any passes those that wait for them. Nothing passes a request that
waits for tokens or for a place, or a large one would wait for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from services.gateway.admission.cost import Cost
from services.gateway.admission.fair_order import Load, Shares, Waiter, note, rank
from services.gateway.admission.metrics import AdmissionMetrics
from services.gateway.admission.readers import Readers
from services.gateway.keys.api_keys import Caller
from ziya.errors import DeadlineExceeded, Overloaded, Unavailable, ZiyaError

LONGEST_RETRY = 30.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much is worked on at once, how many requests wait beyond it, and for how long."""

    requests: int
    images: int
    tokens: int
    waiting: int
    wait_seconds: float


class Place:
    """Room that a request holds, as a context manager; its images' room goes back when they are `seen`."""

    def __init__(self, caller: Caller, cost: Cost, give_back: Callable[[Caller, Cost, int], None]) -> None:
        self._caller, self._cost, self._give_back = caller, cost, give_back

    def seen(self) -> None:
        """The language model has the images: the stages that make them tokens are free of this request."""
        if self._cost.images:
            self._give_back(self._caller, Cost(images=self._cost.images), 0)
            self._cost = Cost(tokens=self._cost.tokens)

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *failure: object) -> None:
        self._give_back(self._caller, self._cost, 1)


@dataclass(eq=False, slots=True)
class _Waiting(Waiter):
    deadline: float  # unix seconds
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    admitted: bool = False


class Admission:
    """Bounded work. Use inside one event loop."""

    def __init__(self, capacity: Capacity, metrics: AdmissionMetrics) -> None:
        self._capacity, self._metrics = capacity, metrics
        self._held = Load()
        self._shares = Shares(Load(capacity.requests, capacity.images, capacity.tokens))
        self._queue: list[_Waiting] = []
        self.readers = Readers(metrics)
        self._arrivals = 0
        self._held_seconds = 0.0
        self.in_flight = 0
        self._inside: Counter[Caller] = Counter()
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def drain(self, seconds: float) -> None:
        """Lets nobody in any more, and waits at most so long until everybody has left."""
        self.draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)

    @contextmanager
    def enter(self, caller: Caller) -> Iterator[None]:
        """The door. Raises Overloaded when all is full, Unavailable while draining."""
        if self.draining:
            self._metrics.shed("draining", caller.key.name)
            raise Unavailable("this gateway is shutting down; ask again")
        if self.in_flight >= self._capacity.requests + self._capacity.waiting:
            self._make_room(caller)
        self.in_flight += 1
        self._inside[caller] += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            self._inside -= Counter([caller])  # which forgets those that are not there
            if not self.in_flight:
                self._idle.set()

    def _make_room(self, caller: Caller) -> None:
        last = self._last()
        if last is not None and self._shares.gives_way(last, caller):
            self._refuse(last, "displaced", self._overloaded())
        elif not self.readers.displace(caller) and not self._squeezes_in(caller):
            self._metrics.shed("full", caller.key.name)
            raise self._overloaded()

    def _squeezes_in(self, arrival: Caller) -> bool:
        """Whether it may come in though all is full: somebody would give way to it who just now cannot.

        A request that is between its body and the queue, or is just leaving, cannot be told; who gives way is then
        found in the queue. Twice what there is room for is the end of it.
        """
        if self.in_flight >= 2 * (self._capacity.requests + self._capacity.waiting):
            return False
        counts: Counter[str] = Counter()
        for caller, count in self._inside.items():
            counts[caller.key.name] += count
        return any(rank(caller, counts) > rank(arrival, counts, 1) for caller in self._inside)

    async def place(self, caller: Caller, cost: Cost, deadline: float) -> Place:
        """Room for a request, at once or after a wait. `deadline` is unix seconds.

        Raises Overloaded when there is none for long or somebody else goes before, DeadlineExceeded when the request's
        own time was over first.
        """
        started = time.monotonic()
        if self._queue or self._held.lacking(cost, self._shares.bound):
            await self._wait(_Waiting(caller, cost, self._number(), deadline))
        else:
            self._take(caller, cost)
        begun = time.monotonic()
        self._metrics.wait.observe(begun - started)

        def give_back(caller: Caller, cost: Cost, requests: int) -> None:
            self._give_back(caller, cost, requests, begun)

        return Place(caller, cost, give_back)

    async def _wait(self, waiter: _Waiting) -> None:
        self._join(waiter)
        kept = False
        try:
            async with asyncio.timeout(min(self._capacity.wait_seconds, waiter.deadline - time.time())):
                await waiter.turn
            kept = True
        except TimeoutError:
            raise self._too_late(waiter) from None
        except asyncio.CancelledError:
            self._metrics.shed("left", waiter.caller.key.name)
            raise
        finally:
            self._leave(waiter)
            if waiter.admitted and not kept:
                self._give_back(waiter.caller, waiter.cost, 1, None)

    def _join(self, waiter: _Waiting) -> None:
        self._queue.append(waiter)
        note(self._shares.waiting, waiter.caller.key.name, waiter.cost, 1)
        self._admit()
        if len(self._queue) > self._capacity.waiting:
            last = self._last() or waiter
            self._refuse(last, "full" if last is waiter else "displaced", self._overloaded())
        self._metrics.waiting.set(len(self._queue))

    def _leave(self, waiter: _Waiting) -> None:
        if waiter in self._queue:
            self._queue.remove(waiter)
            note(self._shares.waiting, waiter.caller.key.name, Cost() - waiter.cost, -1)
            self._metrics.waiting.set(len(self._queue))
            self._admit()  # it may have stood before others

    def _last(self) -> _Waiting | None:
        """Who gives way, of those who have not been told anything yet."""
        return self._shares.last([waiter for waiter in self._queue if not waiter.turn.done()])

    def _refuse(self, waiter: _Waiting, reason: str, error: ZiyaError) -> None:
        self._metrics.shed(reason, waiter.caller.key.name)
        self._leave(waiter)
        waiter.turn.set_exception(error)

    def _too_late(self, waiter: _Waiting) -> ZiyaError:
        if time.time() >= waiter.deadline:
            self._metrics.shed("expired", waiter.caller.key.name)
            return DeadlineExceeded("the request's time was over before there was room for it")
        self._metrics.shed("waited", waiter.caller.key.name)
        return self._overloaded()

    def _admit(self) -> None:
        """Gives room to those whose turn it is, as long as there is any."""
        while (waiter := self._next()) is not None:
            waiter.admitted = True
            self._take(waiter.caller, waiter.cost)
            self._queue.remove(waiter)
            note(self._shares.waiting, waiter.caller.key.name, Cost() - waiter.cost, -1)
            waiter.turn.set_result(None)
        self._metrics.waiting.set(len(self._queue))

    def _next(self) -> _Waiting | None:
        if self._held.requests >= self._capacity.requests:
            return None  # without asking in which order they would come
        images_short = False
        now = time.time()
        for waiter in self._shares.order(self._queue):
            if waiter.turn.done() or waiter.deadline <= now:
                continue  # it is being told already, or will be in a moment: nothing is begun for it
            lacking = self._held.lacking(waiter.cost, self._shares.bound)
            if lacking - {"images"}:
                return None
            if lacking:
                images_short = True
            elif not (images_short and waiter.cost.images):
                return waiter
        return None

    def _take(self, caller: Caller, cost: Cost) -> None:
        self._held.add(cost)
        note(self._shares.held, caller.key.name, cost, 1)
        self._shares.took_turn(caller, self._number())
        self._show()

    def _give_back(self, caller: Caller, cost: Cost, requests: int, started: float | None) -> None:
        nothing = Cost() - cost
        self._held.add(nothing, -requests)
        note(self._shares.held, caller.key.name, nothing, -requests)
        if requests and started is not None:
            # Of the seconds that a request holds its place an average is kept, in which the latest counts a tenth.
            held = time.monotonic() - started
            self._held_seconds += (held - self._held_seconds) * (0.1 if self._held_seconds else 1.0)
        self._admit()
        self._show()

    def _show(self) -> None:
        self._metrics.images.set(self._held.images)
        self._metrics.tokens.set(self._held.tokens)

    def _overloaded(self) -> Overloaded:
        held, queue = self._held, len(self._queue)
        # When all who wait have had their turn, as fast as places were given back of late.
        pause = (queue + 1) * self._held_seconds / max(1, held.requests)
        return Overloaded(
            f"all is full: {held.requests} requests with {held.images} images and {held.tokens} tokens are being "
            f"answered, and {queue} wait",
            min(max(1.0, pause), LONGEST_RETRY),
        )

    def _number(self) -> int:
        self._arrivals += 1
        return self._arrivals
