"""Who is in the next step, with how many rows: admits, chunks prompts, makes room, removes. No tensors.

Each step has one row for every request that decodes, and up to `prefill_tokens` rows of prompts beside them, of as many
prompts as fit in; so a long prompt delays its neighbours by a bounded time. A request is admitted when there are
blocks for its whole prompt. What its prompt begins with may lie in blocks already, perhaps put there in this very
step by another: a layer's keys and values are all written before its attention reads them. When no block
is left for a token, the youngest running request gives up its own and waits again, first in the queue.
"""

from __future__ import annotations

from collections import deque

from services.llama.engine.blocks import BLOCK, BlockPool, blocks_for
from services.llama.engine.sequence import Sequence

Rows = list[tuple[Sequence, int]]


class Scheduler:
    """Not thread-safe: it belongs to the engine's thread.

    `running` is in the order of admission. `reuse` looks for what is cached already. Up to `guesses` tokens of an
    answer are guessed ahead, where that can be verified.
    """

    def __init__(
        self, slots: int, prefill_tokens: int, pool: BlockPool, *, reuse: bool = True, guesses: int = 0
    ) -> None:
        self.slots = slots
        self.pool = pool
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preempted = 0
        self._prefill_tokens = prefill_tokens
        self._reuse = reuse
        self._guesses = guesses
        self._step: Rows = []

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.running)

    def step(self, now: float) -> Rows:
        """Each sequence of the next step with its number of rows; those that decode come first."""
        self._step = []
        self._decode()
        budget = self._prefill_tokens
        prompts = [sequence for sequence in self.running if sequence.pending > 1]
        while budget > 0 and (sequence := prompts.pop(0) if prompts else self._admit(now)):
            count = min(budget, sequence.pending)
            budget -= count
            self._name(sequence, sequence.computed + count)
            self._step.append((sequence, count))
        return self._step

    def _decode(self) -> None:
        """Oldest first, so that whoever loses its place has no rows yet."""
        for sequence in list(self.running):
            if sequence.blocks and sequence.pending == 1 and self._reach(sequence):
                sequence.drafts = self._drafts(sequence)
                self._step.append((sequence, 1 + len(sequence.drafts)))

    def _reach(self, sequence: Sequence) -> bool:
        """A block for the next position; False when the sequence itself had to give up its place."""
        if sequence.computed < len(sequence.blocks) * BLOCK:
            return True
        while not self.pool.free:
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        sequence.blocks.append(self.pool.allocate())
        return True

    def _drafts(self, sequence: Sequence) -> list[int]:
        """Guesses as far as its blocks go, and free ones: nobody loses a place for a guess."""
        if not (self._guesses and sequence.guessable):
            return []
        drafts = sequence.lookup.guess(min(self._guesses, sequence.left - 1))
        while sequence.computed + 1 + len(drafts) > len(sequence.blocks) * BLOCK and self.pool.free:
            sequence.blocks.append(self.pool.allocate())
        return drafts[: len(sequence.blocks) * BLOCK - sequence.computed - 1]

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.appendleft(sequence)
        self.preempted += 1

    def _admit(self, now: float) -> Sequence | None:
        """The first that waits, if its known tokens find room and leave a block to each that runs."""
        if not self.waiting or len(self.running) >= self.slots:
            return None
        sequence = self.waiting[0]
        found = self._find(sequence)
        wanted = blocks_for(sequence.known) - len(found)
        left = self.pool.free - sum(not self.pool.held(block) for block in found) - wanted
        if left < len(self.running):
            return None
        self.waiting.popleft()
        for block in found:
            self.pool.hold(block)
        sequence.blocks = found + [self.pool.allocate() for _ in range(wanted)]
        sequence.computed = len(found) * BLOCK
        if sequence.admitted != sequence.admitted:  # not a number yet: the first time
            sequence.admitted, sequence.cached = now, sequence.computed
        self.running.append(sequence)
        return sequence

    def _find(self, sequence: Sequence) -> list[int]:
        """Blocks that hold what the sequence begins with; its last known position is always computed."""
        found: list[int] = []
        if self._reuse:
            for number in range((sequence.known - 1) // BLOCK):
                block = self.pool.find(sequence.prefix.name(number))
                if block is None:
                    break
                found.append(block)
        return found

    def _name(self, sequence: Sequence, positions: int) -> None:
        """Names the blocks that are full once `positions` are computed."""
        if self._reuse:
            for number in range(sequence.computed // BLOCK, positions // BLOCK):
                self.pool.name(sequence.blocks[number], sequence.prefix.name(number))

    def computed(self, sequence: Sequence, positions: int) -> None:
        """After a step, and after its tokens are known: so many more of its positions are right.

        What was computed for wrong guesses is not, nor what right ones led to after the answer's end.
        """
        positions = min(positions, sequence.pending)
        self._name(sequence, sequence.computed + positions)
        sequence.computed += positions
        sequence.drafts = []

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, whether it runs or waits; its blocks are free at once."""
        if sequence.blocks:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    def abandon(self) -> list[Sequence]:
        """After a step that failed: forgets all that run, and all content of the cache; gives back who ran."""
        abandoned, self.running = self.running, []
        for sequence in abandoned:
            self._release(sequence)
        self.pool.forget_all()
        return abandoned

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks, sequence.drafts, sequence.computed = [], [], 0
