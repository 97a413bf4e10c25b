"""Near duplicates: what counts as one, for whom, and that a run that goes on knows what the one before knew."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.gate_rows import translated, verdict
from training.gates.band_table import MOST, BandTable
from training.gates.duplicates import NearDuplicates
from training.gates.row import Row
from training.gates.shingles import BANDS, band_hashes, jaccard, normalised, shingles

ONE = "A man in a red shirt is riding a wave on top of a white surfboard in the blue sea."
ONE_ZH = "一名身穿红衣的男子在蓝色的大海上踩着白色冲浪板乘风破浪。"
LIKE = "A man in a red shirt is riding a wave on top of a white surfboard in the blue sea"
OTHER = "Two elephants stand in the shade of a tree, and a bird sits on the back of one."
OTHER_ZH = "两头大象站在树荫下，其中一头的背上停着一只小鸟。"
LONG = " ".join([ONE, OTHER])
LONG_ZH = ONE_ZH + OTHER_ZH
SAME, SIMILAR = "reject: the same text", "reject: a similar text"


def row(english: str, chinese: str, picture: str = "", key: str = "row") -> Row:
    return translated(english, chinese, image_digest=picture, key=key)


def drawn(count: int, seed: int = 0) -> list[Row]:
    """Rows of random words, every third a copy of an earlier one with a word or a letter changed."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghij", k=6)) for _ in range(400)]
    rows: list[Row] = []
    for number in range(count):
        if number % 3 == 2:
            earlier = draw.choice(rows)
            english, chinese = (earlier.texts[language][0].text for language in ("en", "zh"))
            english = english.replace(english.split()[3], draw.choice(words), 1)
        else:
            english = " ".join(draw.choices(words, k=14))
            chinese = "".join(chr(draw.randint(0x4E00, 0x5E00)) for _ in range(24))
        rows.append(row(english, chinese, "p", str(number)))
    return rows


def kept(gate: NearDuplicates, rows: list[Row]) -> list[str]:
    verdicts = []
    for one in rows:
        verdicts.append(verdict(gate.check, one))
        if verdicts[-1] == "well":
            gate.keep(one)
    return verdicts


@pytest.mark.parametrize(
    ("english", "chinese", "picture", "expected"),
    [
        (ONE, ONE_ZH, "a", SAME),
        (LIKE.upper(), OTHER_ZH, "a", SAME),
        (OTHER, ONE_ZH.replace("。", "！"), "a", SAME),
        (f"{LIKE} today", OTHER_ZH, "a", SIMILAR),
        (OTHER, f"照片里，{ONE_ZH}", "a", SIMILAR),
        # A word of a short text may be what it is about.
        (LIKE.replace("blue", "cold"), OTHER_ZH, "a", "well"),
        (OTHER, OTHER_ZH, "a", "well"),
        # A short text is true of another picture, too.
        (ONE, ONE_ZH, "b", "well"),
    ],
)
def test_a_near_duplicate_in_either_language_is_found(english: str, chinese: str, picture: str, expected: str) -> None:
    with NearDuplicates() as gate:
        gate.keep(row(ONE, ONE_ZH, "a"))
        assert verdict(gate.check, row(english, chinese, picture)) == expected


def test_a_long_text_may_not_come_back_with_another_picture() -> None:
    with NearDuplicates() as gate:
        gate.keep(row(LONG, LONG_ZH, "a"))
        assert verdict(gate.check, row(LONG, OTHER_ZH, "b")) == SAME
        assert verdict(gate.check, row(OTHER, LONG_ZH, "b")) == SAME


def test_looking_does_not_keep_and_texts_without_letters_are_no_duplicates() -> None:
    with NearDuplicates() as gate:
        first = row(ONE, ONE_ZH, "a")
        assert [verdict(gate.check, first), verdict(gate.check, first)] == ["well", "well"]
        for _ in range(2):
            assert verdict(gate.check, row("👍", "👍", "a")) == "well"
            gate.keep(row("👍", "👍", "a"))
        assert gate.rows == 2


def test_what_is_found_is_what_comparing_all_with_all_finds() -> None:
    rows = drawn(300)
    with NearDuplicates() as gate:
        found = kept(gate, rows)
    held: list[dict[str, np.ndarray]] = []
    expected = []
    for one in rows:
        sets = {name: shingles(normalised(lines[0].text)) for name, lines in one.texts.items()}
        alike = any(jaccard(sets[name], other[name]) >= 0.8 for other in held for name in sets)
        expected.append(alike)
        if not alike:
            held.append(sets)
    assert [verdict != "well" for verdict in found] == expected
    assert 50 < sum(expected) < 150


def test_a_run_that_goes_on_decides_as_one_that_was_never_stopped(tmp_path: Path) -> None:
    rows = drawn(200)
    with NearDuplicates(tmp_path / "whole") as gate:
        whole = kept(gate, rows)
    with NearDuplicates(tmp_path / "parts") as gate:
        first = kept(gate, rows[:120])
        sure = gate.rows
        # Rows that nobody wrote down before the kill.
        kept(gate, drawn(40, seed=9))
    # A record that was being written.
    with (tmp_path / "parts" / "texts.bin").open("ab") as file:
        file.write(b"\x01" * 40)
    with (tmp_path / "parts" / "shingles.bin").open("ab") as file:
        file.write(b"\x01" * 7)
    with NearDuplicates(tmp_path / "parts") as gate:
        assert gate.rows > sure
        gate.truncate(sure)
        assert gate.rows == sure
        assert first + kept(gate, rows[120:]) == whole
    assert (tmp_path / "parts/texts.bin").read_bytes() == (tmp_path / "whole/texts.bin").read_bytes()
    assert (tmp_path / "parts/shingles.bin").read_bytes() == (tmp_path / "whole/shingles.bin").read_bytes()


def test_a_row_that_was_half_written_is_forgotten(tmp_path: Path) -> None:
    with NearDuplicates(tmp_path) as gate:
        gate.keep(row(ONE, ONE_ZH))
        gate.keep(row(OTHER, OTHER_ZH))
    records = tmp_path / "texts.bin"
    content = records.read_bytes()
    # The second row's Chinese is not on the disk.
    records.write_bytes(content[: len(content) * 3 // 4])
    with NearDuplicates(tmp_path) as gate:
        assert gate.rows == 1
        assert verdict(gate.check, row(OTHER, OTHER_ZH)) == "well"
        assert verdict(gate.check, row(ONE, OTHER_ZH)) == SAME


def test_no_more_can_be_remembered_than_was_kept() -> None:
    with NearDuplicates() as gate, pytest.raises(ValueError, match="0 rows were kept, not 3"):
        gate.truncate(3)


def test_a_table_filled_at_once_is_the_table_filled_one_by_one() -> None:
    draw = np.random.default_rng(1)
    bands = draw.integers(0, 1 << 63, (500, BANDS), np.uint64)
    # Some bands that many texts have, and some texts without bands.
    bands[draw.random((500, BANDS)) < 0.3] = np.uint64(7 << 40)
    bands[::50] = 0
    grown = BandTable(600)
    stored = np.stack([grown.add(one, number) for number, one in enumerate(bands)])
    filled = BandTable(600)
    filled.add_all(stored)
    assert [filled.find(one) for one in bands] == [grown.find(one) for one in bands]
    assert filled.count == grown.count == np.count_nonzero(stored)
    common = filled.find(np.full(BANDS, 7 << 40, np.uint64))
    assert len(common) <= MOST
    assert grown.find(bands[0]) == []


def test_signatures_agree_as_often_as_the_sets_are_similar() -> None:
    """The chance of a shared band is 1 - (1 - s^4)^12; it must be near to certain from 0.8 on, and small at 0.3."""
    draw = np.random.default_rng(2)
    for similarity, low, high in ((0.9, 0.99, 1.0), (0.8, 0.97, 1.0), (0.3, 0.0, 0.2)):
        met = 0
        for _ in range(200):
            every = draw.integers(0, 1 << 32, 100, np.uint64).astype(np.uint32)
            shared = round(100 * similarity)
            one = np.unique(np.concatenate([every[:shared], every[shared : shared + (100 - shared) // 2]]))
            other = np.unique(np.concatenate([every[:shared], every[shared + (100 - shared) // 2 :]]))
            assert jaccard(one, other) == pytest.approx(similarity, abs=0.02)
            met += bool(np.any(band_hashes(one, 0) == band_hashes(other, 0)))
        assert low <= met / 200 <= high
