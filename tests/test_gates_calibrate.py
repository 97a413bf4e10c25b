"""What the gates reject of what is right: counted by one command, and nothing of the shipped examples."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from training.gates import calibrate
from training.gates.inspection import pure_gates
from training.gates.true_pairs import cldr_names, examples, messages, stamp_captions

EXAMPLES = Path("checkpoints/ziya-tiny/examples/examples.json")


def test_no_shipped_example_is_rejected() -> None:
    pairs = examples(EXAMPLES)
    tally, details = calibrate.rates(pairs, pure_gates())
    assert (tally.rows, tally.accepted, dict(details)) == (26, 26, {})


def test_what_is_wrong_is_counted_by_gate_and_kind() -> None:
    pairs = [("a red cat", "红猫"), ("3 cats", "两只猫"), ("The FBI came.", "他们来了。")]
    tally, details = calibrate.rates(pairs, pure_gates())
    assert (tally.rows, tally.accepted) == (3, 2)
    assert set(details) == {"numbers | reject | a number in digits is missing", "names | doubt | a name is missing"}
    lines = list(calibrate.report("pairs", pairs, 1))
    assert lines[0] == "\npairs: 3 pairs, 1 rejected (33.33 %)"
    assert "numbers | reject | a number in digits is missing | 1 | 33.33 %" in lines
    assert "    3: 3 cats / 两只猫" in lines


def test_the_command_reads_all_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "packages" / "cldr-annotations-full" / "annotations"
    for language, name in (("en", "badger"), ("zh", "獾")):
        put(
            names / language / "annotations.json", json.dumps({"annotations": {"annotations": {"🦡": {"tts": [name]}}}})
        )
    put(tmp_path / "stamps" / "a" / "owl.txt", "An owl.\nfr.utf8=Un hibou.\nzh_CN.utf8=猫头鹰。\n")
    put(tmp_path / "stamps" / "none.txt", "A wren.\nfr.utf8=Un roitelet.\n")
    (tmp_path / "catalogues").mkdir()
    catalogue = {"": "Content-Type: text/plain; charset=UTF-8\n", "Open file": "打开文件", "Saved %s": "已保存 %s"}
    (tmp_path / "catalogues" / "a.mo").write_bytes(mo_file(catalogue))
    (tmp_path / "catalogues" / "broken.mo").write_bytes(b"none")
    assert cldr_names(tmp_path / "packages") == [("badger", "獾")]
    assert stamp_captions(tmp_path / "stamps") == [("An owl.", "猫头鹰。")]
    assert messages(tmp_path / "catalogues") == [("Open file", "打开文件")]
    folders = [word for name in ("packages", "stamps", "catalogues") for word in (f"--{name}", str(tmp_path / name))]
    monkeypatch.setattr("sys.argv", ["calibrate", *folders])
    calibrate.main()
    printed = capsys.readouterr().out
    for line in ("examples of ziya-tiny: 26 pairs, 0 rejected", "CLDR names: 1 pairs", "Tux Paint stamps: 1 pairs"):
        assert line in printed
    assert "messages of programs: 1 pairs" in printed
    assert "26 right and 650 wrong pairs" in printed


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def mo_file(texts: dict[str, str]) -> bytes:
    """GNU gettext's binary catalogue: header, two tables of (length, offset), texts that end with a zero byte."""
    keys = [key.encode() + b"\0" for key in sorted(texts)]
    values = [texts[key].encode() + b"\0" for key in sorted(texts)]
    offset, tables = 28 + 16 * len(keys), b""
    for text in (*keys, *values):
        tables += struct.pack("<2I", len(text) - 1, offset)
        offset += len(text)
    head = struct.pack("<7I", 0x950412DE, 0, len(keys), 28, 28 + 8 * len(keys), 0, 0)
    return head + tables + b"".join(keys + values)
