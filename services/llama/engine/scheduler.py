"""Who runs in the next step: admits, chunks prompts, removes. Plain bookkeeping, no tensors but the slot copies.

Running requests hold slots 0 … n - 1 without holes: first those that decode, then at most one whose prompt is
only partly computed. A step computes at most `prefill_tokens` prompt tokens beside one token of each decoding
request, so that a long prompt delays its neighbours by a bounded time. Who leaves is replaced by the last of
its kind, which is the only copying there is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from services.llama.engine.sequence import Sequence


class Scheduler:
    """`move(source, target, length)` copies a slot's cache. Not thread-safe: it belongs to the engine's thread."""

    def __init__(self, slots: int, prefill_tokens: int, move: Callable[[int, int, int], None]) -> None:
        self.slots = slots
        self.waiting: deque[Sequence] = deque()
        self.decoding: list[Sequence] = []
        self.partial: Sequence | None = None
        self._in_step: list[tuple[Sequence, int]] = []
        self._prefill_tokens = prefill_tokens
        self._move = move

    @property
    def running(self) -> list[Sequence]:
        return [*self.decoding, self.partial] if self.partial else self.decoding

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.decoding or self.partial)

    def prefills(self, now: float) -> list[tuple[Sequence, int]]:
        """The prompts to go on with in this step, each with its number of tokens; admits those that begin."""
        budget, chosen = self._prefill_tokens, list[tuple[Sequence, int]]()
        while budget > 0:
            sequence = self.partial or self._admit(now, len(chosen))
            if sequence is None:
                break
            count = min(budget, sequence.length - sequence.computed)
            budget -= count
            chosen.append((sequence, count))
            self.partial = None if sequence.computed + count == sequence.length else sequence
            if self.partial:
                break
        self._in_step = chosen
        return chosen

    def _admit(self, now: float, beginning: int) -> Sequence | None:
        slot = len(self.decoding) + beginning
        if not self.waiting or slot >= self.slots:
            return None
        sequence = self.waiting.popleft()
        sequence.slot, sequence.admitted = slot, now
        return sequence

    def computed(self) -> None:
        """After a step: the prompts that are complete decode from now on."""
        for sequence in self.decoding:
            sequence.computed += 1
        for sequence, count in self._in_step:
            sequence.computed += count
            if sequence.prefilled:
                self.decoding.append(sequence)
        self._in_step = []

    def remove(self, sequence: Sequence) -> None:
        """Frees the slot of a running sequence, or takes a waiting one out of the queue."""
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return
        hole, sequence.slot = sequence.slot, -1
        if sequence is self.partial:
            self.partial = None
            return
        last = self.decoding.pop()
        if last is not sequence:
            self.decoding[hole] = last
            hole = self._put(last, hole)
        if self.partial:
            self._put(self.partial, hole)

    def _put(self, sequence: Sequence, slot: int) -> int:
        source, sequence.slot = sequence.slot, slot
        self._move(source, slot, sequence.computed)
        return source

    def abandon(self) -> list[Sequence]:
        """Forgets all that run, also those of a step that failed; gives them back."""
        in_step = [sequence for sequence, _ in self._in_step if sequence is not self.partial]
        running = [*self.running, *in_step]
        self.decoding.clear()
        self.partial, self._in_step = None, []
        return running
