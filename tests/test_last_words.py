"""What a process says last: one JSON object that fits, from the process that knows best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.last_words import LIMIT_BYTES, LastWords

SUMMARY = {
    "stage": "chat",
    "step": 200,
    "metrics": {"caption/zh.exact": 0.5},
    "artifact": {"path": "chat/model", "digest": "sha256:00"},
    "attempt": 3,
    "seconds": 1.5,
}


@pytest.fixture
def words(tmp_path: Path) -> LastWords:
    path = tmp_path / "termination-log"
    path.touch()
    return LastWords(path)


def said(words: LastWords) -> dict[str, object]:
    assert words.path.stat().st_size <= LIMIT_BYTES
    value: dict[str, object] = json.loads(words.path.read_text("utf-8"))
    return value


def test_nothing_is_made_where_no_file_is(tmp_path: Path) -> None:
    LastWords(tmp_path / "log").failure(1, "NonFinite", "step 3: loss lm is nan")
    assert not (tmp_path / "log").exists()


def test_success_is_told_with_what_was_left_and_by_the_first_process_alone(
    words: LastWords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    words.success(SUMMARY)
    assert words.path.read_text() == ""
    monkeypatch.setenv("RANK", "0")
    words.success(SUMMARY)
    assert said(words) == {"code": 0, **{name: SUMMARY[name] for name in ("stage", "step", "metrics", "artifact")}}


def test_the_first_failure_of_a_pod_stays_and_success_and_a_new_attempt_replace_it(words: LastWords) -> None:
    LastWords(words.path, step=lambda: 16).failure(42, "BadData", "a picture is cut off")
    words.failure(1, "RuntimeError", "connection closed by peer")
    assert said(words) == {"code": 42, "error": "BadData", "reason": "a picture is cut off", "step": 16}
    words.forget()
    words.failure(75, "Stopped", "stopped after step 3")
    assert said(words)["code"] == 75
    words.success(SUMMARY)
    assert said(words)["code"] == 0


@pytest.mark.parametrize("text", ["字" * 5000, "\n" * 5000, "\x01" * 5000, "x" * 4080, '"' * 3000, "\ud800" * 5000])
def test_a_long_reason_is_cut_and_stays_json(words: LastWords, text: str) -> None:
    words.failure(1, "OSError", text)
    reason = said(words)["reason"]
    assert isinstance(reason, str)
    assert reason.endswith("…")
    assert words.path.stat().st_size > LIMIT_BYTES - 20


def test_metrics_are_cut_to_fit_and_the_artifact_is_not(words: LastWords) -> None:
    words.success({**SUMMARY, "metrics": {f"caption.field{number}/zh.exact": number / 7 for number in range(500)}})
    told = said(words)
    assert told["artifact"] == SUMMARY["artifact"]
    assert isinstance(told["metrics"], dict)
    assert list(told["metrics"])[:2] == ["caption.field0/zh.exact", "caption.field1/zh.exact"]
    assert 50 < len(told["metrics"]) < 500


def test_a_file_that_cannot_be_written_does_not_hide_the_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    LastWords(tmp_path).failure(1, "NonFinite", "a folder stands there")
    assert f"{tmp_path} cannot be written" in capfd.readouterr().err
