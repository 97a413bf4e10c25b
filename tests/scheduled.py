"""The scheduler driven without a model: what a model would write to the cache is kept as hashes, and checked.

A position's content is a hash of all that stands before and at it. In each step all rows are written, then every
position that a request counts as computed must hold what its own history says: so a block that was reused wrongly,
handed out too early or left half written is seen at once.
"""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE

from services.llama.engine.blocks import BLOCK, BlockPool
from services.llama.engine.detokenizer import TokenBytes
from services.llama.engine.prefix import Prefix
from services.llama.engine.sampling import Sampling
from services.llama.engine.scheduler import Scheduler
from services.llama.engine.seam import Prompt
from services.llama.engine.sequence import Sequence

TABLE = TokenBytes(Tokenizer(BPE()))
CONTEXT = 100
IMAGES = [np.full((5, 2), number, np.float16) for number in range(3)]


class Bench:
    """A scheduler, its pool and what lies in the cache; up to `drafts` guesses a step, of which some are right."""

    def __init__(
        self, *, slots: int = 4, budget: int = 12, blocks: int = 9, drafts: int = 0, reuse: bool = True, seed: int = 0
    ) -> None:
        self.rng = random.Random(seed)
        self.budget, self.slots = budget, slots
        self.pool = BlockPool(blocks)
        self.scheduler = Scheduler(slots, budget, self.pool, reuse=reuse, guesses=drafts)
        self.content: dict[tuple[int, int], int] = {}
        self.finished: list[Sequence] = []

    def submit(self, prompt: Prompt, tokens: int) -> Sequence:
        sampling = Sampling(max_tokens=tokens, ignore_eos=True)
        sequence = Sequence(prompt, sampling, deadline=0.0, table=TABLE, context=CONTEXT, submitted=0.0)
        assert sequence.most_blocks <= self.pool.count
        self.scheduler.waiting.append(sequence)
        return sequence

    def submit_random(self) -> Sequence:
        """Prompts of few kinds, so that many begin alike; at most 5 blocks with their answers."""
        texts = [tuple(self.rng.randrange(2) for _ in range(self.rng.randint(1, 8))) for _ in range(2)]
        common = (7,) * self.rng.choice((0, 3, 17))
        visuals = (self.rng.choice(IMAGES),) if self.rng.random() < 0.5 else ()
        pieces = (common + texts[0], texts[1]) if visuals else (common + texts[0],)
        return self.submit(Prompt(pieces, visuals, salt=self.rng.choice((b"", b"x"))), self.rng.randint(1, 40))

    def cancel(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        assert not sequence.blocks

    def step(self) -> None:
        rows = self.scheduler.step(0.0)
        decoding = {sequence for sequence in self.scheduler.running if sequence.pending == 1}
        prompt_rows = sum(count for sequence, count in rows if sequence not in decoding)
        assert prompt_rows <= self.budget
        assert len(self.scheduler.running) <= self.slots
        assert rows or self.scheduler.idle
        assert len({sequence for sequence, _ in rows}) == len(rows)
        for sequence, count in rows:
            self._write(sequence, count)
        for sequence, count in rows:
            self._check(sequence, sequence.computed + count - len(sequence.drafts))
            self._advance(sequence, count)
        self.check()

    def check(self) -> None:
        held = Counter(block for sequence in self.scheduler.running for block in sequence.blocks)
        assert self.pool.used == len(held)
        for sequence in self.scheduler.running:
            assert len(set(sequence.blocks)) == len(sequence.blocks)
            self._check(sequence, sequence.computed)
        assert all(not sequence.blocks and not sequence.computed for sequence in self.scheduler.waiting)

    def _write(self, sequence: Sequence, count: int) -> None:
        """As a model does: from the first position that is not computed, guesses included."""
        history = self._history(sequence, sequence.drafts)
        for position in range(sequence.computed, sequence.computed + count):
            self.content[sequence.blocks[position // BLOCK], position % BLOCK] = history[position]

    def _check(self, sequence: Sequence, positions: int) -> None:
        history = self._history(sequence, [])
        for position in range(positions):
            assert self.content[sequence.blocks[position // BLOCK], position % BLOCK] == history[position]

    def _advance(self, sequence: Sequence, count: int) -> None:
        drafts, ready = list(sequence.drafts), count >= sequence.pending
        right = self.rng.randint(0, len(drafts))
        if ready:
            for token in [*drafts[:right], self.rng.randrange(3)]:
                sequence.append(token, None, 0.0)
        self.scheduler.computed(sequence, count - len(drafts) + right)
        if sequence.finish_reason:
            self._check_names(sequence)
            self.scheduler.remove(sequence)
            self.finished.append(sequence)

    @staticmethod
    def _check_names(sequence: Sequence) -> None:
        """Its blocks go by the names that whoever goes on with this answer will look for."""
        fresh = Prefix(sequence.prompt)
        fresh.extend(sequence.ids)
        for number in range(sequence.computed // BLOCK):
            assert sequence.prefix.name(number) == fresh.name(number)

    @staticmethod
    def _history(sequence: Sequence, drafts: list[int]) -> list[int]:
        """Worked out from the prompt itself, not from the names that are under test."""
        items: list[object] = []
        for number, piece in enumerate(sequence.prompt.pieces):
            if number:
                visual = sequence.prompt.visuals[number - 1]
                items.extend((float(visual[0, 0]), index) for index in range(len(visual)))
            items.extend(piece)
        value, hashes = hash((sequence.prompt.salt, sequence.adapter)), []
        for item in [*items, *sequence.ids, *drafts]:
            value = hash((value, item))
            hashes.append(value)
        return hashes
