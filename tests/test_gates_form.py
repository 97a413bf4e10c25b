"""The gate of form: turns, characters, markers of templates, lengths that the trainer takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gate_rows import lines, translated, verdict
from training.gates.characters import damage
from training.gates.form import Form, estimated_tokens
from training.gates.row import Line, Row
from training.recipe import Text

HAN = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5), min_size=6, max_size=40)
BROKEN = {"empty", "mojibake", "control characters", "replacement characters", "markers of a prompt template"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("一只猫。", None),
        ("café naïve Ångström – “quoted” … €5", None),
        ("👩‍👩‍👧 and 🏳️‍🌈", None),
        ("第一行\n第二行\t表格", None),
        ("联通", None),
        ("未知状态", None),
        ("", "empty"),
        (" \n\u3000", "empty"),
        ("Itâ€™s a cafÃ©", "mojibake"),
        ("浣犲ソ锛屼笘鐣岋紝浠婂ぉ", "mojibake"),
        ("一只\ufffd猫", "replacement characters"),
        ("锟斤拷锟斤拷", "replacement characters"),
        ("a\x00cat", "control characters"),
        ("a cat\x07", "control characters"),
        ("猫\ue000", "control characters"),
        ("\ud83d half", "control characters"),
        ("<human>: 你好", "markers of a prompt template"),
        ("你好</s>", "markers of a prompt template"),
        ("<image>\n一只猫", "markers of a prompt template"),
        ("<|im_start|>user", "markers of a prompt template"),
        ("[INST] hi [/INST]", "markers of a prompt template"),
        ("USER: what is it?", "markers of a prompt template"),
        ("用户：这是什么？", "markers of a prompt template"),
        ("### Response", "markers of a prompt template"),
        ("The user: a man of forty", None),
        ("x < s and s > 3", None),
    ],
)
def test_texts_that_cannot_be_learnt(text: str, expected: str | None) -> None:
    found = verdict(Form().check, translated("A cat.", text))
    assert found == ("well" if expected is None else f"reject: {expected}")
    assert expected is None or expected in BROKEN


@given(HAN)
def test_text_that_was_read_with_the_wrong_codec_is_found(text: str) -> None:
    wrong = text.encode().decode("gbk", "ignore")
    assert damage(text) is None
    # What GBK cannot hold is lost, and then there may be no run of four characters left that is UTF-8.
    if wrong.encode("gbk") == text.encode():
        assert damage(wrong) == "mojibake"
    assert damage(text.encode().decode("latin-1")) in ("mojibake", "control characters")


@pytest.mark.parametrize(
    ("task", "source", "made", "expected"),
    [
        ("vqa", "What?|A cat.", "什么？|猫。", "well"),
        ("dialogue", "Hi|Hello|What?|A cat.", "嗨|你好|什么？|猫。", "well"),
        ("dialogue", "Hi|Hello|What?", "嗨|你好|什么？", "reject: turns do not alternate"),
        ("dialogue", "Hi|Hello", "嗨|你好|什么？|猫。", "reject: lines differ between the languages"),
    ],
)
def test_turns_must_be_pairs_and_the_same_in_both_languages(task: str, source: str, made: str, expected: str) -> None:
    assert verdict(Form().check, translated(source, made, task=task)) == expected


def test_roles_must_alternate_and_something_must_be_made() -> None:
    said = (Line("user", "Hi"), Line("user", "Hello"))
    row = Row("row", "dialogue", "en", said, {"zh": (Line("user", "嗨"), Line("user", "你好"))})
    assert verdict(Form().check, row) == "reject: turns do not alternate"
    empty = Row("row", "description", "en", (), {"en": (), "zh": ()}, translated=False)
    assert verdict(Form().check, empty) == "reject: nothing was made"


def test_what_the_trainer_refuses_is_rejected_and_what_it_cuts_is_doubted() -> None:
    limits = Text(row_positions=60, caption_tokens=8, answer_tokens=20, instruction_tokens=20)
    check = Form(limits, visual=32).check
    assert verdict(check, translated("A cat.", "一只坐在木桌上的橘色小猫。")) == "doubt: caption will be cut"
    answer = "猫" * 28
    assert verdict(check, translated("What?|Cats.", f"什么？|{answer}", task="vqa")) == "doubt: answer will be cut"
    # The picture's tokens count, where there is one.
    longer = translated("What?|Cats.", f"什么？|{answer}", task="vqa", image=lambda: b"")
    assert verdict(check, longer) == "reject: too long for a row"
    exact = Form(limits, tokens=len, visual=0).check
    assert verdict(exact, translated("What?|Cats.", f"什么？|{'猫' * 58}", task="vqa")) == "reject: too long for a row"


def test_tokens_are_estimated_by_characters_and_parts_of_words() -> None:
    assert estimated_tokens("一只猫。") == 4
    assert estimated_tokens("A camel, walking.") == 1 + 2 + 1 + 2 + 1
    assert [line.role for line in lines("vqa", "a|b|c")] == ["question", "answer", "question"]
