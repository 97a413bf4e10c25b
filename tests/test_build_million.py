"""Memory of a build does not grow with its rows, so that a million of them need less than a GiB."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.build_rows import measure

ROWS, LARGEST_MIB = 1_000_000, 1024


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_million_rows_are_planned_resumed_and_reported_in_a_gibibyte(tmp_path: Path) -> None:
    _, planned, written = measure(tmp_path, ROWS)
    assert (planned["planned"], planned["to_ask"]) == (ROWS, 0)
    assert written["rows"] == ROWS
    assert planned["MiB"] < written["MiB"] < LARGEST_MIB
