"""What processes cost: CPU seconds and memory of a program with all of its children, from /proc."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Memory:
    """Bytes. `resident` counts what processes share once for each; `proportional` (PSS) shares it out among them."""

    resident: int
    proportional: int

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.resident + other.resident, self.proportional + other.proportional)


def cpu_seconds(pid: int, *, alone: bool = False) -> float:
    """User and system, of a process and (not `alone`) its children: those that live, and those that have ended."""
    total = 0.0
    for process in _tree(pid, alone):
        times = process.cpu_times()
        total += times.user + times.system
        if not alone:
            total += times.children_user + times.children_system
    return total


def memory(pid: int, *, alone: bool = False) -> Memory:
    found = Memory(0, 0)
    for process in _tree(pid, alone):
        full = process.memory_full_info()
        found += Memory(full.rss, full.pss)
    return found


def _tree(pid: int, alone: bool) -> Iterator[psutil.Process]:
    root = psutil.Process(pid)
    yield root
    if not alone:
        yield from root.children(recursive=True)
