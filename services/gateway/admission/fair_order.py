"""Who is next, and who gives way: by priority, then by dominant shares.

A key's share is the part that it holds of the scarcest thing it holds (requests, images or tokens), over its weight;
the key with the smallest share goes first, and of equal ones the key whose last turn is longest ago. This is dominant
resource fairness (Ghodsi et al., NSDI 2011): whatever mix a key asks for, it cannot take from another by asking for
more. Who gives way is the opposite end: the lowest priority, in it the key with the largest share, counting what waits,
and of that key the latest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from services.gateway.admission.cost import Cost
from services.gateway.keys.api_keys import Caller


@dataclass(slots=True)
class Load:
    """Requests, images and tokens, held or as a bound."""

    requests: int = 0
    images: int = 0
    tokens: int = 0

    def add(self, cost: Cost, requests: int = 1) -> None:
        self.requests += requests
        self.images += cost.images
        self.tokens += cost.tokens

    def lacking(self, cost: Cost, bound: Load) -> set[str]:
        """What there is not enough of for one more request. One that is alone lacks nothing, however large it is."""
        if not self.requests:
            return set()
        over = {
            "requests": self.requests + 1 > bound.requests,
            "images": cost.images > 0 and self.images > 0 and self.images + cost.images > bound.images,
            "tokens": self.tokens + cost.tokens > bound.tokens,
        }
        return {name for name, is_over in over.items() if is_over}

    def share(self, bound: Load) -> float:
        return max(self.requests / bound.requests, self.images / bound.images, self.tokens / bound.tokens)


@dataclass(eq=False, slots=True)
class Waiter:
    """A request that waits; `number` grows with arrival."""

    caller: Caller
    cost: Cost
    number: int


WaiterT = TypeVar("WaiterT", bound=Waiter)
T = TypeVar("T")


@dataclass
class Shares:
    """What each key holds and has waiting, of `bound`."""

    bound: Load
    held: dict[str, Load] = field(default_factory=dict)
    waiting: dict[str, Load] = field(default_factory=dict)
    turns: dict[str, int] = field(default_factory=dict)

    def order(self, waiters: Iterable[WaiterT]) -> list[WaiterT]:
        """First the one that is next."""
        turn = _once_a_key(self._turn)
        return sorted(waiters, key=lambda one: (turn(one.caller), one.number))

    def took_turn(self, caller: Caller, number: int) -> None:
        """Notes that a key got a place; `number` grows with every one."""
        self.turns[caller.key.name] = number

    def last(self, waiters: Iterable[WaiterT]) -> WaiterT | None:
        """The one that gives way to the others."""
        rank = _once_a_key(self._rank)
        return max(waiters, key=lambda one: (rank(one.caller), one.number), default=None)

    def gives_way(self, waiter: Waiter, arrival: Caller) -> bool:
        """Whether a waiter gives way to a request that is only arriving, and whose cost is not known yet."""
        priority, share = self._rank(arrival)
        return self._rank(waiter.caller) > (priority, share + 1 / self.bound.requests / arrival.key.weight)

    def _turn(self, caller: Caller) -> tuple[float, ...]:
        return (-caller.priority, self._held(caller), self.turns.get(caller.key.name, 0))

    def _rank(self, caller: Caller) -> tuple[int, float]:
        return (-caller.priority, self._held(caller) + _share(self.waiting, caller, self.bound))

    def _held(self, caller: Caller) -> float:
        return _share(self.held, caller, self.bound)


def note(loads: dict[str, Load], name: str, cost: Cost, requests: int) -> None:
    """Adds to a key's load (or takes from it, with negative numbers), and forgets a key that has none."""
    load = loads.setdefault(name, Load())
    load.add(cost, requests)
    if not load.requests:
        del loads[name]


def rank(caller: Caller, requests: Mapping[str, int], more: int = 0) -> tuple[int, float]:
    """Of those whose cost is not known yet the one with the largest gives way. `requests`: of each key; `more` come."""
    return (-caller.priority, (requests[caller.key.name] + more) / caller.key.weight)


def _share(loads: dict[str, Load], caller: Caller, bound: Load) -> float:
    load = loads.get(caller.key.name)
    return load.share(bound) / caller.key.weight if load else 0.0


def _once_a_key(judge: Callable[[Caller], T]) -> Callable[[Caller], T]:
    """The same, but asked once for all requests of one key and priority: many wait, and of few keys."""
    known: dict[tuple[str, int], T] = {}

    def judged(caller: Caller) -> T:
        who = (caller.key.name, int(caller.priority))
        if who not in known:
            known[who] = judge(caller)
        return known[who]

    return judged
