"""The scheduler and its blocks under anything requests can do, without a model; `scheduled.py` keeps the books."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.llama.engine.blocks import BLOCK
from services.llama.engine.seam import Prompt
from tests.scheduled import IMAGES, Bench


class Requests(RuleBasedStateMachine):
    """Requests come, run, are cancelled and finish in any order."""

    @initialize(
        slots=st.integers(1, 5), budget=st.integers(1, 40), blocks=st.integers(5, 10),
        drafts=st.sampled_from((0, 0, 1, 4)), reuse=st.booleans(), seed=st.integers(0, 1000),
    )  # fmt: skip
    def begin(self, **options: int) -> None:
        self.bench = Bench(**options)  # type: ignore[arg-type]

    @rule()
    def submit(self) -> None:
        self.bench.submit_random()

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.bench.step()

    @precondition(lambda self: not self.bench.scheduler.idle)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        scheduler = self.bench.scheduler
        self.bench.cancel(data.draw(st.sampled_from([*scheduler.running, *scheduler.waiting])))

    @rule()
    def fail(self) -> None:
        """A step that was begun and never computed."""
        self.bench.scheduler.step(0.0)
        self.bench.scheduler.abandon()
        self.bench.content.clear()
        assert self.bench.pool.used == 0

    @invariant()
    def books_agree(self) -> None:
        self.bench.check()

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            finish(self.bench)


def finish(bench: Bench) -> None:
    """Everything that is inside comes to its end in a bounded number of steps, and then nothing is held."""
    for _ in range(4000):
        if bench.scheduler.idle:
            break
        bench.step()
    assert bench.scheduler.idle
    assert bench.pool.used == 0


Requests.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRequests = Requests.TestCase


@pytest.mark.parametrize("drafts", [0, 3])
def test_ten_thousand_random_requests_leave_no_block_behind(drafts: int) -> None:
    bench = Bench(slots=6, budget=24, blocks=7, drafts=drafts, seed=5)
    cancelled = 0
    for _ in range(10_000 // (1 + bool(drafts))):
        bench.submit_random()
        while len(bench.scheduler.waiting) > 3:
            bench.step()
        if bench.rng.random() < 0.1:
            bench.cancel(bench.rng.choice([*bench.scheduler.running, *bench.scheduler.waiting]))
            cancelled += 1
    finish(bench)
    reused = sum(sequence.cached for sequence in bench.finished)
    assert len(bench.finished) + cancelled == 10_000 // (1 + bool(drafts))
    assert bench.scheduler.preempted > 100
    assert reused > 10_000


def test_a_prompt_that_comes_with_another_shares_its_blocks_in_the_same_step() -> None:
    bench = Bench(budget=100)
    prompts = [Prompt(((5,) * 20, (number,) * 10), (IMAGES[0],)) for number in (1, 2)]
    sequences = [bench.submit(prompt, 3) for prompt in prompts]
    bench.step()
    assert [sequence.cached for sequence in sequences] == [0, BLOCK]
    assert sequences[0].blocks[0] == sequences[1].blocks[0]
    assert sequences[0].blocks[1] != sequences[1].blocks[1]


def test_the_youngest_gives_way_and_comes_back_first() -> None:
    bench = Bench(blocks=5, budget=100)
    old, young, late = (bench.submit(Prompt(((number,) * 24,)), 20) for number in range(3))
    while not bench.scheduler.preempted:
        bench.step()
    assert bench.scheduler.running == [old]
    assert list(bench.scheduler.waiting) == [young, late]
    said = list(young.ids)
    finish(bench)
    assert young.ids[: len(said)] == said
    assert [len(sequence.ids) for sequence in (old, young, late)] == [20, 20, 20]


def test_several_prompts_share_a_steps_budget() -> None:
    bench = Bench(budget=30)
    sequences = [bench.submit(Prompt(((number,) * 12,)), 5) for number in range(4)]
    assert [(sequence, count) for sequence, count in bench.scheduler.step(0.0)] == [
        (sequences[0], 12), (sequences[1], 12), (sequences[2], 6),
    ]  # fmt: skip
