"""A ready process's objects are out of its collector's sight, in a process of its own: there is no way back."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from ziya.heap import hardly_collected

PROGRAM = """
import gc, weakref
from ziya.heap import keep_what_is_loaded

class Node:
    pass

loaded = [Node() for _ in range(1000)]
garbage = Node()
garbage.itself = garbage
gone = weakref.ref(garbage)
del garbage
keep_what_is_loaded()
seen = sum(type(one) is Node for one in gc.get_objects())
later = Node()
later.itself = later
also_gone = weakref.ref(later)
del later
gc.collect()
print(gone(), seen, also_gone(), len(loaded))
"""


def test_what_is_loaded_is_kept_and_garbage_still_goes() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "0", "None", "1000"]


def test_what_was_set_before_a_measurement_is_set_after_it() -> None:
    before = gc.get_threshold()
    inside: list[tuple[int, int, int]] = []

    def measure() -> None:
        with hardly_collected():
            inside.append(gc.get_threshold())
            raise KeyError

    with pytest.raises(KeyError):
        measure()
    assert inside[0][0] > before[0]
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
