"""Counts, histograms and samples: of parts they add up to those of the whole, in any order."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gate_rows import translated
from training.errors import BadData
from training.gates.gate import Doubt, Finding, Reject
from training.gates.histogram import Histogram
from training.gates.inspection import inspect, measure, passes, pure_gates
from training.gates.row import Row
from training.gates.tally import Tally

PICTURE = Path("checkpoints/ziya-tiny/examples/badger.webp")
FINDINGS: list[list[Finding]] = [
    [],
    [],
    [Reject("length", "Chinese too long", "9.0")],
    [Doubt("names", "a name is missing"), Reject("language", "English where Chinese is due")],
    [Doubt("names", "a name is missing")],
]


def rows(count: int, seed: int = 0) -> list[tuple[Row, list[Finding]]]:
    draw = random.Random(seed)
    tasks = ("caption", "vqa")
    return [
        (
            translated("A cat.|It is.", "猫。|是。", task=draw.choice(tasks), key=f"{seed}/{number}"),
            draw.choice(FINDINGS),
        )
        for number in range(count)
    ]


def tally_of(counted: list[tuple[Row, list[Finding]]]) -> Tally:
    tally = Tally()
    for row, found in counted:
        tally.looked["length"] += 1
        measure(row, tally)
        tally.verdict(row, found)
    return tally


def test_a_verdict_in_two_steps_is_a_verdict() -> None:
    """What is noted first and settled later, in any order, is counted and sampled as what was known at once."""
    late = Reject("near duplicate", "the same text", "1.00 to kept row 7")
    counted = [
        (row, [*found, late] if number % 3 == 0 and passes(found) else found)
        for number, (row, found) in enumerate(rows(120))
    ]
    noted = Tally()
    open_ = []
    for row, found in counted:
        noted.looked["length"] += 1
        measure(row, noted)
        known = [one for one in found if one is not late]
        if noted.note(row, known) is None:
            open_.append((row, late if late in found else None))
    for row, reject in reversed(open_):
        noted.settle(row.task, row.digest, lambda row=row: row, reject)
    assert noted.state() == tally_of(counted).state()
    assert noted.state()["rejects"]["near duplicate"] == {"the same text": noted.rejects[late.gate, late.kind]}


@given(st.lists(st.integers(0, 120), max_size=4), st.randoms())
def test_tallies_of_parts_add_up_in_any_order(cuts: list[int], draw: random.Random) -> None:
    counted = rows(120)
    places = [0, *sorted(cuts), 120]
    parts = [tally_of(counted[start:end]) for start, end in pairwise(places)]
    draw.shuffle(parts)
    whole = Tally()
    for part in parts:
        # Through JSON, as from a shard.
        whole.merge(Tally.restore(json.loads(json.dumps(part.state()))))
    assert whole.state() == tally_of(counted).state()


def test_a_row_is_counted_once_and_each_finding_of_it() -> None:
    counted = rows(50)
    state = tally_of(counted).state()
    good = sum(passes(found) for _, found in counted)
    assert (state["rows"], state["accepted"]) == (50, good)
    assert 0 < good < 50
    rejects = sum(count for kinds in state["rejects"].values() for count in kinds.values())
    assert rejects == 50 - good
    assert state["doubts"] == {
        "names": {"a name is missing": sum(len(found) and isinstance(found[0], Doubt) for _, found in counted)}
    }
    assert state["histograms"]["length ratio"]["counts"] != [0] * len(state["histograms"]["length ratio"]["counts"])


def test_the_first_reject_is_the_verdict() -> None:
    row, _ = rows(1)[0]
    found = [Doubt("names", "a name is missing"), Reject("length", "x"), Reject("copied", "y")]
    assert Tally().verdict(row, found) == Reject("length", "x")
    assert Tally().verdict(row, found[:1]) is None


def test_samples_are_drawn_by_digest_and_hold_what_the_page_shows() -> None:
    counted = [(translated("A cat.", "猫。", key=str(number), image=PICTURE.read_bytes), []) for number in range(40)]
    entries = tally_of(counted).samples.entries("accepted/caption")
    smallest = sorted((row for row, _ in counted), key=lambda row: row.digest)[:12]
    assert [entry["key"] for entry in entries] == [row.key for row in smallest]
    assert all(entry["image"].startswith("data:image/jpeg;base64,") for entry in entries)
    assert entries[0]["texts"] == {"en": [["caption", "A cat."]], "zh": [["caption", "猫。"]]}


def test_a_sample_whose_picture_or_text_is_broken_is_shown_without() -> None:
    tally = Tally()
    tally.verdict(translated("A cat\ud83d.", "猫。", image=lambda: b"no picture"), [Reject("form", "x", "\ud83d")])
    entry = tally.samples.entries("rejected/form")[0]
    assert entry["image"] == ""
    assert json.loads(json.dumps(entry, ensure_ascii=False).encode()) == entry


def test_a_row_is_in_a_sample_by_its_content_alone() -> None:
    one, same = (translated("A cat.", "猫。", key="a") for _ in range(2))
    assert one.share("x") == same.share("x") != one.share("y")
    assert one.digest != translated("A cat.", "狗。", key="a").digest != translated("A cat.", "狗。", key="b").digest
    shares = [translated("A cat.", "猫。", key=str(number)).share("x") for number in range(2000)]
    assert 0.08 < sum(share < 0.1 for share in shares) / 2000 < 0.12


def test_a_histogram_counts_below_between_and_above() -> None:
    held = Histogram.over((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        held.add(value)
    assert (held.counts, held.mean) == ([1, 2, 2], pytest.approx(2.8))
    with pytest.raises(ValueError, match="cannot be added"):
        held.merge(Histogram.over((1.0, 3.0)))


def test_what_is_no_tally_is_refused() -> None:
    with pytest.raises(BadData, match="version 9"):
        Tally.restore({"version": 9})
    with pytest.raises(BadData, match="cannot be read"):
        Tally.restore({"version": 1, "rows": 3})


def test_all_pure_gates_look_at_a_row_and_a_broken_one_is_shown_to_no_more() -> None:
    gates, tally = pure_gates(), Tally()
    assert inspect(translated("A cat.", "一只猫。"), gates, tally) == []
    assert dict(tally.looked) == dict.fromkeys((gate.name for gate in gates), 1)
    assert {gate.name for gate in gates} == {"form", "refusal", "copied", "language", "length", "numbers", "names"}
    found = inspect(translated("A cat and 3 dogs.", "A cat and 3 dogs."), gates, tally)
    assert [finding.gate for finding in found] == ["copied", "language"]
    assert [finding.kind for finding in inspect(translated("3 cats", ""), gates, tally)] == ["empty"]
    assert (tally.looked["form"], tally.looked["names"]) == (3, 2)
