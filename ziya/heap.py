"""What a program has loaded stays: Python's collector need not walk through it again and again.

A full collection of a gateway's 100,000 objects, nearly all of them its modules', was seen to hold its event loop for a
third of a second under load.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Objects made and not freed, until the young ones are gone through; and so often that, until those which stayed are.
_YOUNG, _NEVER = 50_000, 1_000_000


def keep_what_is_loaded() -> None:
    """To be called once, when a process is ready. What is garbage by then goes; the rest is never looked at again."""
    gc.collect()
    gc.freeze()


@contextmanager
def hardly_collected() -> Iterator[None]:
    """For who measures others: a pause of its own would be taken for theirs.

    Inside, only young objects are gone through, and seldom; what makes a cycle and grows old stays until the end.
    """
    before = gc.get_threshold()
    gc.freeze()  # without a collection: the clock of the measurement may be running
    gc.set_threshold(_YOUNG, _NEVER)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
