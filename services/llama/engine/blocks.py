"""Who holds which block of the KV cache, and which blocks already hold what a prompt begins with.

Plain bookkeeping, no tensors. Blocks are counted: as many requests as share one hold it. A block that nobody holds is
free to be handed out, but keeps its content, and its name in the table, until that happens: those without a name go
first, then the least recently used. The names are `prefix.py`'s, so equal names mean equal keys and values.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

BLOCK = 16  # positions in a block


def blocks_for(positions: int) -> int:
    """How many blocks hold so many positions."""
    return -(-positions // BLOCK)


class BlockPool:
    """Blocks 0 … `count` - 1. Not thread-safe: it belongs to the engine's thread, but for reading the counts."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._holders = [0] * count
        self._free = OrderedDict[int, None].fromkeys(range(count))  # the next to be handed out comes first
        self._names: list[bytes | None] = [None] * count
        self._named: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def used(self) -> int:
        return self.count - len(self._free)

    def allocate(self) -> int:
        """A block with one holder; what it held is forgotten. There must be a free one."""
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        self._holders[block] = 1
        return block

    def find(self, name: bytes) -> int | None:
        """The block of that name, held or not."""
        return self._named.get(name)

    def held(self, block: int) -> bool:
        return self._holders[block] > 0

    def hold(self, block: int) -> None:
        """One holder more of a block that `find` gave."""
        self._free.pop(block, None)
        self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One holder less of each. Give a request's blocks in order: its first ones are kept longest."""
        for block in reversed(list(blocks)):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free[block] = None
                if self._names[block] is None:
                    self._free.move_to_end(block, last=False)

    def name(self, block: int, name: bytes) -> None:
        """From now on `find` gives this block for `name`, unless another has that name already."""
        if self._names[block] is None and name not in self._named:
            self._names[block] = name
            self._named[name] = block

    def forget_all(self) -> None:
        """No block is found by name any more: their content cannot be trusted."""
        self._names = [None] * self.count
        self._named.clear()

    def _forget(self, block: int) -> None:
        name = self._names[block]
        if name is not None:
            self._names[block] = None
            del self._named[name]
