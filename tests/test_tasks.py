"""Every task in both languages, records that do not fit, and what the Q-Former is given to read."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import bert_tokenizer
from training.data.captions import Captioner
from training.data.record import Conversation, Draw, Record
from training.data.tasks import InTurn, caption_text, conversation, random_of
from training.data.templates import TEMPLATES
from training.errors import BadConfig, BadSample
from training.recipe import Check, Source
from ziya.instruction import MAX_TOKENS, instruction_ids, load_instruction_tokenizer
from ziya.prompt import Turn

PLAIN = {name: {"en": (f"{name}?",), "zh": (f"问{name}",)} for name in ("caption", "classify", "ocr")} | {
    "vqa": {"en": ("Q: {question}",), "zh": ("问：{question}",)},
    "choice": {"en": ("{question} {options}",), "zh": ("{question}选项：{options}",)},
}
FIELDS: dict[str, Any] = {
    "caption": {"en": "a cat", "zh": "一只猫"},
    "vqa": {"question": {"en": "What colour?", "zh": "什么颜色？"}, "answer": {"en": "red", "zh": "红色"}},
    "choice": {
        "question": {"en": "Which one?", "zh": "哪一个？"},
        "options": [{"en": "dog", "zh": "狗"}, {"en": "cat", "zh": "猫"}],
        "answer": 1,
    },
    "label": {"en": "cat", "zh": "猫"},
    "ocr": "EXIT 出口",
    "dialogue": {
        "turns": [
            {"role": "user", "text": {"en": "Hi", "zh": "你好"}},
            {"role": "assistant", "text": {"en": "Hello", "zh": "你好！"}},
        ]
    },
}
EXPECTED = [
    ("caption", "en", "caption?", "a cat"),
    ("caption", "zh", "问caption", "一只猫"),
    ("vqa", "en", "Q: What colour?", "red"),
    ("vqa", "zh", "问：什么颜色？", "红色"),
    ("choice", "en", "Which one? (a) dog (b) cat", "(b) cat"),
    ("choice", "zh", "哪一个？选项：(a) 狗 (b) 猫", "(b) 猫"),
    ("classify", "en", "classify?", "cat"),
    ("classify", "zh", "问classify", "猫"),
    ("ocr", "en", "ocr?", "EXIT 出口"),
    ("ocr", "zh", "问ocr", "EXIT 出口"),
    ("dialogue", "en", "Hi", "Hello"),
    ("dialogue", "zh", "你好", "你好！"),
]
USER, BOT = {"role": "user", "text": "q"}, {"role": "assistant", "text": "a"}


def record(fields: Mapping[str, Any], images: int = 1) -> Record:
    return Record("shard-00003:17", fields, images)


def told(fields: Mapping[str, Any], task: str, images: int = 1, **source: Any) -> Conversation:
    asked = Source("data", task=task, **source)
    return conversation(record(fields, images), asked, PLAIN, random_of(1, 2))


@pytest.mark.parametrize(("task", "language", "question", "answer"), EXPECTED)
def test_every_task_in_both_languages(task: str, language: str, question: str, answer: str) -> None:
    turns = told(FIELDS, task, 2, language=language).turns
    assert turns == (Turn("user", question, (0, 1)), Turn("assistant", answer))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_our_own_wordings(language: str) -> None:
    for name, wordings in TEMPLATES.items():
        own = wordings[language]
        assert len(set(own)) == len(own) >= (12 if name.startswith(("vqa", "caption")) else 8)
        for wording in own:
            assert wording == wording.strip()
            assert wording.count("{question}") == name.startswith(("vqa", "choice"))
            assert wording.count("{options}") == (name == "choice")
            written = wording.replace("{question}", "问" if language == "zh" else "")
            assert any("一" <= letter <= "鿿" for letter in written) == (language == "zh")


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("task", ["caption", "vqa", "choice", "classify", "ocr"])
def test_every_wording_is_drawn_and_filled(task: str, language: str) -> None:
    source = Source("data", task=task, language=language)
    talks = [conversation(record(FIELDS), source, {}, random_of(0, position)) for position in range(400)]
    questions = {talk.turns[0].text for talk in talks}
    assert len(questions) == len(TEMPLATES[task][language])
    assert not any("{" in question for question in questions)


def test_a_set_is_chosen_by_name_and_a_datasets_own_count_first() -> None:
    assert told({"label": "cat"}, "classify", templates="ocr").turns[0].text == "ocr?"
    short = told({"caption": "cat"}, "caption", templates="caption_short").turns[0].text
    assert short in TEMPLATES["caption_short"]["en"]


def test_a_field_of_another_name_and_one_of_a_list() -> None:
    names = {"name": ["cat", {"en": "tom"}, {"en": ["kitten", "puss"]}]}
    source = Source("data", field="name")
    drawn = {caption_text(record(names), source, random_of(0, position)) for position in range(100)}
    assert drawn == {"cat", "tom", "kitten", "puss"}
    answers = {"vqa": [{"question": "q", "answer": ["x", "y"]}, {"question": "p", "answer": "z"}]}
    pairs = {
        tuple(turn.text for turn in conversation(record(answers), Source("data", "vqa"), PLAIN, random.Random(n)).turns)
        for n in range(100)
    }
    assert pairs == {("Q: q", "x"), ("Q: q", "y"), ("Q: p", "z")}


def test_an_evaluation_asks_like_a_source() -> None:
    check = Check("data", task="vqa", language="zh")
    assert conversation(record(FIELDS), check, PLAIN, random_of(0, 0)).turns[0].text == "问：什么颜色？"


def test_braces_in_a_records_text_are_left_alone() -> None:
    fields = {"choice": {"question": "{options}?", "options": ["{question}", "{0}"], "answer": 0}}
    turns = told(fields, "choice").turns
    assert (turns[0].text, turns[1].text) == ("{options}? (a) {question} (b) {0}", "(a) {question}")


def test_a_dialogue_says_where_its_images_are() -> None:
    turns = [USER, BOT, {"role": "user", "text": "", "images": [1, 0]}, BOT]
    assert told({"dialogue": [{"turns": turns}]}, "dialogue", 2).turns == (
        Turn("user", "q"),
        Turn("assistant", "a"),
        Turn("user", "", (1, 0)),
        Turn("assistant", "a"),
    )


def test_images_that_no_turn_mentions_go_to_the_first() -> None:
    turns = told({"dialogue": {"turns": [USER, BOT, USER, BOT]}}, "dialogue", 2).turns
    assert [turn.images for turn in turns] == [(0, 1), (), (), ()]


MALFORMED: list[tuple[str, Any, str]] = [
    ("caption", " \n", "empty text: caption"),
    ("caption", 7, "wrong field: caption must be text, not int"),
    ("caption", None, "wrong field: caption must be text, not NoneType"),
    ("caption", [], "wrong field: caption is an empty list"),
    ("caption", {"zh": "猫"}, "missing language: caption has zh, not en"),
    ("caption", {"en": ""}, "empty text: caption"),
    ("caption", "half a pair \ud83d", "wrong field: caption is not valid Unicode"),
    ("vqa", "why?", "wrong field: vqa must be an object, not str"),
    ("vqa", {"question": "why?"}, "missing field: vqa.answer"),
    ("vqa", {"question": "why?", "answer": ""}, "empty text: vqa.answer"),
    ("vqa", {"question": {"zh": "？"}, "answer": "x"}, "missing language: vqa.question has zh, not en"),
    ("choice", {"question": "q", "options": ["a", "b"], "answer": 2}, "wrong field: choice.answer"),
    ("choice", {"question": "q", "options": ["a", "b"], "answer": True}, "wrong field: choice.answer"),
    ("choice", {"question": "q", "options": ["a", "b"], "answer": "a"}, "wrong field: choice.answer"),
    ("choice", {"question": "q", "options": ["a"], "answer": 0}, "wrong field: choice.options"),
    ("choice", {"question": "q", "options": {"zh": ["a", "b"]}, "answer": 0}, "missing language: choice.options"),
    ("choice", {"question": "q", "options": ["a", " "], "answer": 0}, "empty text: choice.options"),
    ("label", ["cat", 1][1:], "wrong field: label must be text, not int"),
    ("ocr", "", "empty text: ocr"),
    ("dialogue", {"turns": []}, "wrong field: dialogue.turns"),
    ("dialogue", {"turns": [USER]}, "wrong field: dialogue.turns"),
    ("dialogue", {"turns": [BOT, USER]}, "wrong field: dialogue.turns[0].role must be user"),
    ("dialogue", {"turns": [USER, USER]}, "wrong field: dialogue.turns[1].role must be assistant"),
    ("dialogue", {"turns": [USER, "a"]}, "wrong field: dialogue.turns[1] must be an object"),
    ("dialogue", {"turns": [USER, {"role": "assistant"}]}, "missing field: dialogue.turns[1].text"),
    ("dialogue", {"turns": [USER, {**BOT, "text": ""}]}, "empty text: dialogue.turns[1].text"),
    ("dialogue", {"turns": [{**USER, "images": [2]}, BOT]}, "wrong image: dialogue.turns[0] shows image 2 of 2"),
    ("dialogue", {"turns": [{**USER, "images": [-1]}, BOT]}, "wrong image: dialogue.turns[0] shows image -1"),
    ("dialogue", {"turns": [{**USER, "images": "0"}, BOT]}, "wrong field: dialogue.turns[0].images"),
    ("dialogue", {"turns": [USER, {**BOT, "images": [0]}]}, "wrong field: dialogue.turns[1].images"),
    ("dialogue", {"turns": [{**USER, "text": "", "images": [0]}, BOT, {**USER, "text": ""}, BOT]}, "empty text"),
    ("dialogue", "hello", "wrong field: dialogue must be an object, not str"),
]


@pytest.mark.parametrize(("field", "value", "reason"), MALFORMED)
def test_a_record_that_does_not_fit_is_named(field: str, value: Any, reason: str) -> None:
    task = "classify" if field == "label" else field
    with pytest.raises(BadSample) as caught:
        told({field: value}, task, 2)
    assert caught.value.key == "shard-00003:17"
    assert caught.value.reason.startswith(reason)


def test_a_missing_field_or_image_is_named() -> None:
    with pytest.raises(BadSample, match="shard-00003:17: missing field: caption"):
        caption_text(record({}), Source("data"), random_of(0, 0))
    with pytest.raises(BadSample, match="missing language: caption has zh, not en"):
        caption_text(record({"caption": {"zh": "猫"}}), Source("data"), random_of(0, 0))
    for task in ("caption", "classify", "ocr"):
        with pytest.raises(BadSample, match="no image"):
            told(FIELDS, task, 0)


@pytest.mark.parametrize(
    ("source", "templates", "sentence"),
    [
        (Source("data", "riddle"), {}, "there is no task 'riddle'"),
        (Source("data", templates="loud"), {}, "source caption/en: there are no templates 'loud', only caption, "),
        (Source("data", language="fr"), {}, "the templates 'caption' have none in 'fr'"),
        (Source("data", templates="own"), {"own": {"zh": ("说",)}}, "the templates 'own' have none in 'en'"),
        (Source("data", "vqa", templates="caption"), {}, "of the templates 'caption' has no {question}"),
        (Source("data", templates="own"), {"own": {"en": ("what {question}",)}}, "may have no placeholder in braces"),
        (Source("data", "vqa"), {"vqa": {"en": ("{question} {",)}}, "may have question in braces"),
        (Source("data", "dialogue", templates="vqa"), {}, "it has no templates"),
    ],
)
def test_a_source_that_cannot_be_is_a_wrong_config(source: Source, templates: Any, sentence: str) -> None:
    with pytest.raises(BadConfig) as caught:
        conversation(record(FIELDS), source, templates, random_of(0, 0))
    assert sentence in str(caught.value)


def test_random_numbers_are_the_samples_own_in_any_process() -> None:
    # The number itself, so that another process, hash seed or version of this code cannot give another.
    assert random_of(42, 7, "wording").random() == 0.12087261338107014
    others = [random_of(42, 8), random_of(43, 7), random_of(42, 7), random_of(42, 7, "a"), random_of(4, 27)]
    assert len({other.random() for other in others}) == 5


def test_captions_lose_their_end_and_instructions_their_beginning(tmp_path: Path) -> None:
    (tmp_path / "qformer").mkdir()
    bert_tokenizer().save(str(tmp_path / "qformer" / "tokenizer.json"))
    tokenizer = load_instruction_tokenizer(tmp_path)
    captioner = Captioner(tokenizer, max_tokens=5)
    cls, sep, pad = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[PAD]"))
    one, cat, this = (tokenizer.token_to_id(token) for token in "一猫这")
    captions = captioner.batch(["一一一猫猫猫", "这猫", ""])
    assert captions.ids_BT.tolist() == [
        [cls, one, one, one, sep],
        [cls, this, cat, sep, pad],
        [cls, sep, pad, pad, pad],
    ]
    assert captions.mask_BT.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]
    long = "一" + "猫" * MAX_TOKENS
    read = captioner.instructions([long, "这猫"])
    assert read.ids_BT[0].tolist() == instruction_ids(tokenizer, long) == [cls, *[cat] * (MAX_TOKENS - 2), sep]
    assert read.ids_BT[1, : read.mask_BT[1].sum()].tolist() == instruction_ids(tokenizer, "这猫")


def test_a_text_of_no_token_is_one_padding_token() -> None:
    tokenizer = bert_tokenizer()
    tokenizer.post_processor = None
    captions = Captioner(tokenizer, 5).batch(["", ""])
    assert captions.ids_BT.tolist() == [[tokenizer.token_to_id("[PAD]")]] * 2
    assert captions.mask_BT.tolist() == [[1], [1]]


def test_samples_of_a_visit_take_a_lists_entries_in_turn_and_ask_alike() -> None:
    names = {"caption": {"en": [f"cat {n}" for n in range(5)]}}

    def talk(turn: int, *, item: int = 4, epoch: int = 0, source: int = 1) -> tuple[str, str]:
        drawn = InTurn.of(42, Draw(source, item, epoch, 900 + turn, 900, turn))
        asked, answer = conversation(record(names), Source("data"), TEMPLATES, drawn).turns
        return asked.text, answer.text

    said = [talk(turn) for turn in range(5)]
    assert len({asked for asked, _ in said}) == 1
    assert sorted(answer for _, answer in said) == [f"cat {n}" for n in range(5)]
    # A visit longer than the list begins again; another visit asks and answers in another order.
    assert talk(7) == said[2]
    others = [[talk(turn, **of) for turn in range(5)] for of in ({"item": 5}, {"epoch": 1}, {"source": 0})]
    assert all(other != said for other in others)


def test_questions_of_a_visit_are_taken_in_turn_too() -> None:
    asked = {"vqa": [{"question": f"q{n}", "answer": [f"a{n}", f"b{n}"]} for n in range(3)]}
    source, said = Source("data", "vqa"), set[str]()
    for turn in range(3):
        drawn = InTurn.of(1, Draw(0, 0, 0, turn, 0, turn))
        question, answer = (one.text for one in conversation(record(asked), source, PLAIN, drawn).turns)
        assert question.removeprefix("Q: q") == answer[1:]
        said.add(question)
    assert len(said) == 3
