"""Accuracy of short answers and of multiple choice, and the gap between languages, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from training.errors import BadConfig
from training.scoring.choice import chosen
from training.scoring.gap import gap, mcnemar
from training.scoring.item import Item
from training.scoring.tasks import TASKS, Asking
from training.scoring.vqa import alike, exactly, vqa_accuracy


@pytest.mark.parametrize(
    ("agreeing", "score"),
    # n of ten gave the answer. Leaving out each of them n - 1 are left, leaving out another n.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_vqa_leaves_out_each_of_ten_people(agreeing: int, score: float) -> None:
    # 1: (1 · 0 + 9 · 1/3) / 10; 2: (2 · 1/3 + 8 · 2/3) / 10; 3: (3 · 2/3 + 7 · 1) / 10.
    people = ["red"] * agreeing + [f"other {n}" for n in range(10 - agreeing)]
    assert vqa_accuracy("red", people) == pytest.approx(score)


def test_vqa_compares_what_was_made_alike() -> None:
    assert vqa_accuracy("The Two.", ["2"] * 10) == 1
    assert vqa_accuracy("dont know", ["don't know"] * 10) == 1
    assert vqa_accuracy("二", ["二。"] * 10, "zh") == 1
    with pytest.raises(ValueError, match="at least 4 people"):
        vqa_accuracy("red", ["red"])


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("A Red  Bus", "red bus"),
        ("none", "0"),
        ("ten", "10"),
        ("twelve", "twelve"),
        ("yes, it is", "yes it is"),  # a mark beside a space goes
        ("black/white", "black white"),  # between letters it parts them
        ("1,000", "1000"),  # between digits it goes
        ("U.S.", "us"),
        ("3.5", "3.5"),
        ("it's 10:30", "it's 10:30"),  # apostrophes and colons stay
        ("isnt", "isn't"),
        ("oclock", "o'clock"),
        ("line\nbreak\t", "line break"),
    ],
)
def test_english_answers_are_made_alike_by_the_published_rule(answer: str, plain: str) -> None:
    assert alike(answer, "en") == plain


def test_chinese_answers_are_made_alike() -> None:
    assert alike(" 红色 的。", "zh") == "红色的"
    assert alike("ＡＢ，３", "zh") == "ab3"


def test_gqa_wants_the_very_answer() -> None:
    assert exactly("Yes.", ["yes"]) == 1
    assert exactly("是的。", ["是的"]) == 1
    assert exactly("yes, it is", ["yes"]) == 0
    assert exactly("a dog", ["dog"]) == 0


OPTIONS = ("a cat", "a dog", "plate tectonics")


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("(b) a dog", 1),
        ("B", 1),
        ("b.", 1),
        ("C) plate tectonics", 2),
        ("A dog", 1),  # an article, not the first option
        ("The answer is (c).", 2),
        ("plate tectonics", 2),
        ("It must be plate tectonics, I think.", 2),
        ("a cat and a dog", None),
        ("(e)", None),
        ("no idea", None),
        ("", None),
    ],
)
def test_an_answer_names_an_option_or_none(said: str, number: int | None) -> None:
    assert chosen(said, OPTIONS) == number


def test_an_answer_in_chinese_names_an_option() -> None:
    options = ("一只猫", "一只狗")
    assert [chosen(said, options, "zh") for said in ("（b）", "答案是 B", "图里是一只狗。", "猫和狗")] == [
        1,
        1,
        1,
        None,
    ]


def choice(right: int, key: str = "q") -> Item:
    return Item(key, "en", (OPTIONS[right],), "", (), OPTIONS, right)


def test_choices_are_scored_beside_chance_and_what_named_none() -> None:
    score = TASKS["choice"].score
    assert score is not None
    found = score([choice(0), choice(1), choice(2), choice(2)], ["(a)", "(a)", "hm", "C"])
    assert found.metrics == pytest.approx({"accuracy": 0.5, "no_option": 0.25, "chance": 1 / 3})
    assert found.each["accuracy"] == [1, 0, 0, 1]


def test_questions_are_asked_in_the_first_wording_or_ones_own() -> None:
    asking = Asking(TASKS["vqa"])
    assert asking.question("en", "What colour {is} it?") == "What colour {is} it? Short answer:"
    assert asking.question("zh", "什么颜色？") == "什么颜色？简短回答："
    lettered = Asking(TASKS["choice"]).question("en", "Which?", ("one", "two"))
    assert lettered == "Which? Options: (a) one (b) two"
    own = Asking(TASKS["vqa"], prompts={"en": "Say: {question}"})
    assert own.question("en", "What?") == "Say: What?"
    brought = Asking(TASKS["exact"], templates="name", brought={"name": {"en": ("What is it?",)}})
    assert brought.question("en") == "What is it?"
    with pytest.raises(BadConfig, match="no templates 'name' in 'zh'"):
        brought.question("zh")
    with pytest.raises(BadConfig, match="has no"):
        Asking(TASKS["vqa"], prompts={"en": "What?"}).question("en", "Why?")


# The gap between languages.


def test_a_gap_is_of_the_items_that_both_have() -> None:
    en = {"1": 1.0, "2": 0.0, "3": 1.0, "only English": 0.0}
    found = gap("accuracy", en, {"1": 1.0, "2": 1.0, "3": 1.0, "only Chinese": 0.0})
    assert found is not None
    assert (found.items, found.en, found.zh, found.difference) == (3, pytest.approx(2 / 3), 1.0, pytest.approx(1 / 3))
    assert gap("accuracy", en, {"only Chinese": 1.0}) is None


def test_mcnemars_test_worked_by_hand() -> None:
    # Of 5 items that differ all go one way: 2 · (1/2)^5. Of 4, one goes the other way: 2 · (1 + 4) / 16.
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(1, 3) == pytest.approx(10 / 16)
    assert mcnemar(2, 2) == mcnemar(0, 0) == 1


def test_only_a_gap_that_is_no_chance_is_marked() -> None:
    keys = [str(number) for number in range(200)]
    even = {key: float(int(key) % 2) for key in keys}
    odd = {key: 1 - score for key, score in even.items()}
    same = gap("accuracy", even, odd)
    assert same is not None
    # Every item differs, yet neither language is better.
    assert same.difference == 0
    assert not same.significant
    assert same.low < 0 < same.high
    better = gap("accuracy", even, {key: 1.0 if int(key) % 10 else score for key, score in even.items()})
    assert better is not None
    assert better.significant
    assert better.low > 0
    assert better.p is not None
    assert better.p < 1e-6
    # Scores between 0 and 1 have an interval and no McNemar.
    partly = gap("rouge", dict.fromkeys(keys, 0.5), {key: 0.5 + int(key) / 1000 for key in keys})
    assert partly is not None
    assert partly.p is None
    assert partly.low < partly.difference < partly.high


def test_questions_about_one_picture_are_drawn_together() -> None:
    """Every question three times makes nothing surer: the interval is that of the questions once."""
    once = {str(number): float(number % 3 == 0) for number in range(60)}
    english = dict.fromkeys(once, 0.0)
    single = gap("accuracy", english, once)
    thrice = {f"{key}#{n}": score for n in range(3) for key, score in once.items()}
    about = {key: key.partition("#")[0] for key in thrice}
    tripled = gap("accuracy", dict.fromkeys(thrice, 0.0), thrice, about)
    apart = gap("accuracy", dict.fromkeys(thrice, 0.0), thrice)
    assert single is not None
    assert tripled is not None
    assert apart is not None
    assert (tripled.low, tripled.high) == pytest.approx((single.low, single.high))
    assert (tripled.items, tripled.p) == (180, None)
    assert apart.high - apart.low < 0.7 * (single.high - single.low)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        zh = np.random.default_rng(seed).normal(0.1, 1.0, 80)
        found = gap("x", {str(n): 0.0 for n in range(80)}, {str(n): float(one) for n, one in enumerate(zh)}, seed=seed)
        assert found is not None
        covered += found.low <= 0.1 <= found.high
    # 95 % of 200 are 190; four standard deviations of that are 12.
    assert 178 <= covered <= 200
