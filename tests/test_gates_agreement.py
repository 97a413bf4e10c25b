"""Agreement of text and picture by the shipped checkpoint's ITC score; back-translation by a server of the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.gate_rows import translated
from tests.llm_rules import back, translate
from tests.llm_server import LlmServer, Troubles
from tests.tiny import build_checkpoint
from training.errors import BadConfig
from training.gates.agreement import Agreement, threshold_of
from training.gates.back_translation import BackTranslation, similarity
from training.gates.row import Line, Row
from training.llm.asker import Asker
from training.llm.endpoint import Endpoint
from training.llm.ledger import Ledger

TINY = Path("checkpoints/ziya-tiny")
EXAMPLES = json.loads((TINY / "examples" / "examples.json").read_text("utf-8"))
SAID = ["A red ball lies on the grass.", "Two dogs run after a white cat.", "An old house stands near the river."]


@cache
def agreement() -> Agreement:
    return Agreement(TINY, at_least=0.4, batch=7)


def pictured(said: int, shown: int, **more: Any) -> Row:
    picture = TINY / "examples" / EXAMPLES[shown]["file"]
    names = EXAMPLES[said]
    return translated(names["name_en"], names["name_zh"], image=picture.read_bytes, **more)


def test_the_right_picture_scores_above_the_others() -> None:
    count = len(EXAMPLES)
    scores = agreement().scores([pictured(said, shown) for said in range(count) for shown in range(count)])
    table = [scores[said * count : (said + 1) * count] for said in range(count)]
    best = sum(max(range(count), key=lambda shown: row[shown] or -1) == said for said, row in enumerate(table))
    # By chance it would be one. The examples are of a style that training never showed.
    assert best >= count // 2
    right = [table[said][said] for said in range(count)]
    wrong = [score for said, row in enumerate(table) for shown, score in enumerate(row) if said != shown]
    assert threshold_of(right, 0.5) > threshold_of(wrong, 0.95)


def test_a_text_of_another_picture_is_rejected() -> None:
    boar, lemon = (
        next(n for n, one in enumerate(EXAMPLES) if one["name_en"] == name) for name in ("ambulance", "lemon")
    )
    rows = [pictured(lemon, lemon), pictured(boar, lemon)]
    assert [finding and finding.kind for finding in agreement().findings(rows)] == [None, "text and picture disagree"]


def test_both_languages_must_agree() -> None:
    here, there = (
        next(n for n, one in enumerate(EXAMPLES) if one["name_en"] == name) for name in ("lemon", "ambulance")
    )
    picture = (TINY / "examples" / EXAMPLES[here]["file"]).read_bytes
    mixed = translated(EXAMPLES[here]["name_en"], EXAMPLES[there]["name_zh"], image=picture)
    right, wrong, both = agreement().scores([pictured(here, here), pictured(there, here), mixed])
    assert both is not None
    assert right is not None
    assert wrong is not None
    assert wrong <= both < right


def test_scores_do_not_depend_on_the_batch() -> None:
    rows = [pictured(number, number) for number in range(9)]
    alone = [agreement().scores([row])[0] for row in rows]
    assert agreement().scores(rows) == pytest.approx(alone, abs=1e-4)


def test_rows_without_a_picture_or_a_description_have_no_score() -> None:
    rows = [
        translated("lemon", "柠檬"),
        translated("What?|A lemon.", "什么？|柠檬。", task="vqa", image=lambda: b"not looked at"),
        translated("lemon", "柠檬", image=lambda: b"not a picture"),
        pictured(0, 0),
    ]
    scores = agreement().scores(rows)
    assert scores[:3] == [None, None, -1.0]
    assert scores[3] is not None
    kinds = [finding and finding.kind for finding in agreement().findings(rows[:3])]
    assert kinds == [None, None, "the picture cannot be read"]


def test_a_description_is_scored_by_its_answer() -> None:
    row = pictured(0, 0)
    asked = Row(
        "row",
        "description",
        "en",
        (),
        {language: (Line("question", "?"), Line("answer", row.texts[language][0].text)) for language in ("en", "zh")},
        translated=False,
        image=row.image,
    )
    assert agreement().scores([asked]) == pytest.approx(agreement().scores([row]), abs=1e-5)


def test_a_checkpoint_without_retrieval_heads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="no retrieval heads"):
        Agreement(build_checkpoint(tmp_path / "checkpoint"))
    with pytest.raises(BadConfig, match="cannot say"):
        Agreement(tmp_path / "none")


def test_a_threshold_is_a_quantile_of_the_known_scores() -> None:
    assert threshold_of([None, 0.1, 0.2, 0.3, 0.4, None], 0.25) == 0.1
    assert threshold_of([0.3, 0.1], 1.0) == 0.3
    with pytest.raises(ValueError, match="no quantile"):
        threshold_of([None], 0.5)


def backwards(messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any] | None) -> Any:
    """What a translator says to whom translations into Chinese are given: one of them it does not understand."""
    assert "into English" in messages[0]["content"]
    assert schema is not None
    return {
        "texts": [
            "Nothing of this makes sense." if "懂" in text else back(text)
            for text in json.loads(messages[1]["content"])
        ]
    }


async def scored(tmp_path: Path, rows: Sequence[Row], share: float, troubles: Troubles | None = None) -> Any:
    """Scores, findings, and how many questions were paid for."""
    async with LlmServer(backwards, troubles=troubles) as server:
        with Ledger(tmp_path / "ledger.db") as ledger:
            async with Asker(Endpoint(server.url, "m"), ledger) as asker:
                gate = BackTranslation(asker.ask, share)
                scores = await gate.scores(rows)
                return scores, gate.findings(rows, scores), sum(server.paid.values())


async def test_a_translation_that_comes_back_as_something_else_is_rejected(tmp_path: Path) -> None:
    rows = [translated(text, translate(text), key=text) for text in SAID]
    rows.append(translated("A man in a blue suit.", "谁也不懂这句话。"))
    scores, findings, paid = await scored(tmp_path, rows, 1.0)
    assert scores[:3] == [100.0] * 3
    assert scores[3] < 15
    assert [finding and finding.kind for finding in findings] == [None] * 3 + ["comes back as something else"]
    assert paid == 4


async def test_only_the_sample_is_asked_for_and_only_of_translations(tmp_path: Path) -> None:
    rows = [translated(SAID[0], translate(SAID[0]), key=str(number)) for number in range(300)]
    scores, _, paid = await scored(tmp_path, rows, 0.1)
    chosen = [score is not None for score in scores]
    assert 15 < sum(chosen) < 50
    assert chosen == [row.share("back-translation") < 0.1 for row in rows]
    # All are the same text, so the same question, which is asked once.
    assert paid == 1
    made = Row("row", "caption", "en", (), {"en": (), "zh": ()}, translated=False)
    assert not BackTranslation(lambda question: pytest.fail("asked"), 1.0).chosen(made)


async def test_without_an_answer_a_row_has_no_score(tmp_path: Path) -> None:
    row = translated(SAID[0], translate(SAID[0]))
    scores, findings, _ = await scored(tmp_path, [row], 1.0, Troubles(refuse=1))
    assert (scores, findings) == ([None], [None])


def test_the_similarity_is_that_of_characters_in_either_language() -> None:
    source = (Line("question", "What is it?"), Line("answer", "A red ball."))
    assert similarity(source, ["What is it?", "a red ball."]) == pytest.approx(100.0)
    near = similarity(source, ["What is this?", "A red ball!"])
    far = similarity(source, ["Where do you go?", "Two elephants."])
    assert 50 < near < 100
    assert far < 25
    chinese = (Line("caption", "一只猫坐在桌子上"),)
    assert similarity(chinese, ["一只猫坐在桌上"]) > 50 > similarity(chinese, ["两条狗在河边跑步"])


def test_what_comes_back_in_other_words_is_a_doubt() -> None:
    gate = BackTranslation(lambda question: pytest.fail("asked"), 1.0)
    rows = [translated(SAID[0], "球")] * 4
    kinds = [
        finding and (type(finding).__name__, finding.kind) for finding in gate.findings(rows, [14.9, 15.0, 30.0, None])
    ]
    assert kinds == [
        ("Reject", "comes back as something else"),
        ("Doubt", "comes back in other words"),
        None,
        None,
    ]
