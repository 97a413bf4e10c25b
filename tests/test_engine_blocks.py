"""Blocks against a model of an allocator: who is handed out when, who is found by name, and nothing is lost."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.llama.engine.blocks import BLOCK, BlockPool, blocks_for

NAMES = [bytes([number]) for number in range(12)]


class PoolMachine(RuleBasedStateMachine):
    """The model keeps lists only: what each request holds, the order of the free, the names that are known."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 6
        self.pool = BlockPool(self.count)
        self.requests: list[list[int]] = []
        self.free = list(range(self.count))
        self.names: dict[int, bytes] = {}

    def held(self, block: int) -> int:
        return sum(blocks.count(block) for blocks in self.requests)

    @rule()
    def begin(self) -> None:
        self.requests.append([])

    @precondition(lambda self: self.free and self.requests)
    @rule(data=st.data())
    def allocate(self, data: st.DataObject) -> None:
        block = self.pool.allocate()
        assert block == self.free.pop(0)
        self.names.pop(block, None)
        data.draw(st.sampled_from(self.requests)).append(block)

    @precondition(lambda self: any(self.requests))
    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def name(self, data: st.DataObject, name: bytes) -> None:
        block = data.draw(st.sampled_from([block for blocks in self.requests for block in blocks]))
        self.pool.name(block, name)
        if name not in self.names.values():
            self.names.setdefault(block, name)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def share(self, data: st.DataObject, name: bytes) -> None:
        block = self.pool.find(name)
        if block is None or any(block in blocks for blocks in self.requests[-1:]):
            return
        self.pool.hold(block)
        if block in self.free:
            self.free.remove(block)
        data.draw(st.sampled_from(self.requests)).append(block)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        blocks = self.requests.pop(data.draw(st.integers(0, len(self.requests) - 1)))
        self.pool.release(blocks)
        for number in reversed(range(len(blocks))):
            block = blocks[number]
            if self.held(block) or block in blocks[:number]:
                continue
            if block in self.names:
                self.free.append(block)
            else:
                self.free.insert(0, block)

    @rule()
    def forget(self) -> None:
        self.pool.forget_all()
        self.names.clear()

    @invariant()
    def agrees(self) -> None:
        assert self.pool.free == len(self.free)
        assert self.pool.used == len({block for blocks in self.requests for block in blocks})
        for name in NAMES:
            expected = [block for block, known in self.names.items() if known == name]
            assert self.pool.find(name) == (expected[0] if expected else None)
        assert all(self.pool.held(block) == bool(self.held(block)) for block in range(self.count))


PoolMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestPool = PoolMachine.TestCase


def test_blocks_for_a_number_of_positions() -> None:
    assert [blocks_for(positions) for positions in (0, 1, BLOCK, BLOCK + 1)] == [0, 1, 1, 2]


def test_a_requests_first_blocks_are_kept_longest() -> None:
    pool = BlockPool(4)
    blocks = [pool.allocate() for _ in range(4)]
    for block in blocks:
        pool.name(block, NAMES[block])
    pool.release(blocks)
    assert [pool.allocate() for _ in range(3)] == blocks[:0:-1]
    assert pool.find(NAMES[blocks[0]]) == blocks[0]
    assert pool.find(NAMES[blocks[3]]) is None
