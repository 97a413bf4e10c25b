"""Caption metrics: by hand, and against the reference implementations on the same words."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import sacrebleu
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from training.scoring.bleu import bleu
from training.scoring.captioning import caption_scores
from training.scoring.cider import cider_d
from training.scoring.rouge import longest_common, rouge_l
from training.scoring.words import chinese_characters, chinese_words, english_words

ENGLISH = [
    ("a man rides a brown horse", ["a man riding a horse", "a person on a brown horse", "a man on horseback"]),
    ("two dogs play", ["two dogs are playing in the snow", "dogs play in snow"]),
    ("the the the the", ["the cat is on the mat", "there is a cat on the mat"]),
    ("a plate of food with broccoli and rice on a table", ["rice and broccoli on a plate", "a meal on a table"]),
    ("red bus", ["a double-decker bus drives down the street", "a red bus", "bus on a road in London"]),
]
CHINESE = [
    ("一个男人骑着棕色的马", ["一个男人在骑马", "一个人骑着一匹棕色的马"]),
    ("两只狗在雪地里玩耍", ["两只狗在雪中玩", "雪地里有两只狗"]),
    ("桌子上有一盘食物", ["一盘西兰花和米饭放在桌上", "桌上的一顿饭"]),
    ("红色的公交车", ["一辆双层巴士在街上行驶", "一辆红色的公交车", "伦敦街头的巴士"]),
]


def of_words(cut: object, corpus: Sequence[tuple[str, Sequence[str]]]) -> tuple[list[list[str]], list[list[list[str]]]]:
    assert callable(cut)
    return [cut(said) for said, _ in corpus], [[cut(truth) for truth in truths] for _, truths in corpus]


def made_up(seed: int) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Few different words, so that long n-grams meet; captions of one word, repeated words, one to five references."""
    draw = random.Random(seed)
    said = [draw.choices("abcd", k=draw.randint(1, 12)) for _ in range(60)]
    truths = [[draw.choices("abcd", k=draw.randint(1, 12)) for _ in range(draw.randint(1, 5))] for _ in said]
    return said, truths


CORPORA = {
    "English": of_words(english_words, ENGLISH),
    "Chinese characters": of_words(chinese_characters, CHINESE),
    "Chinese words": of_words(chinese_words, CHINESE),
    "made up": made_up(1),
    "made up, another": made_up(2),
}


@pytest.mark.parametrize("name", CORPORA)
def test_scores_are_those_of_the_reference_implementation(name: str) -> None:
    said, truths = CORPORA[name]
    results = {number: [" ".join(words)] for number, words in enumerate(said)}
    references = {number: [" ".join(words) for words in texts] for number, texts in enumerate(truths)}
    assert bleu(said, truths) == pytest.approx(Bleu(4).compute_score(references, results, verbose=0)[0], abs=1e-12)
    _, rouge = Rouge().compute_score(references, results)
    assert [rouge_l(*pair) for pair in zip(said, truths, strict=True)] == pytest.approx(list(rouge), abs=1e-12)
    mean, cider = Cider().compute_score(references, results)
    mine = cider_d(said, truths)
    assert mine == pytest.approx(list(cider), abs=1e-12)
    assert sum(mine) / len(mine) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("name", ["made up", "made up, another", "Chinese characters"])
def test_bleu_4_is_also_sacrebleus(name: str) -> None:
    said, truths = CORPORA[name]
    most = max(map(len, truths))
    streams = [[" ".join(texts[min(n, len(texts) - 1)]) for texts in truths] for n in range(most)]
    theirs = sacrebleu.corpus_bleu([" ".join(words) for words in said], streams, tokenize="none", smooth_method="none")
    assert 100 * bleu(said, truths)[3] == pytest.approx(theirs.score, abs=1e-5)


def test_bleu_worked_by_hand() -> None:
    # Papineni's own example: "the" counts at most as often as one reference has it. 2 of 4, and "the the" is nowhere.
    said, truths = ["the"] * 4, [["the", "cat", "is", "on", "the", "mat"]]
    first, second, *_ = bleu([said], [truths])
    penalty = 0.36787944117 ** (6 / 4 - 1)  # e^(1 - 6/4)
    assert first == pytest.approx(2 / 4 * penalty, abs=1e-6)
    assert second == pytest.approx(0, abs=1e-6)
    # Of two references equally close in length the shorter counts: no penalty against three words.
    assert bleu([list("abcd")], [[list("abc"), list("abcde")]])[0] == pytest.approx(1)


def test_rouge_worked_by_hand() -> None:
    said, truth = ["police", "killed", "the", "gunman"], ["police", "kill", "the", "gunman"]
    assert longest_common(said, truth) == 3
    assert rouge_l(said, [truth]) == pytest.approx(3 / 4)
    # Precision is best with the first reference (2/2), recall with the second (1/1): (1 + b²) · 1 · 1 / (1 + b²).
    assert rouge_l(["a", "b"], [["a", "b", "c", "d"], ["a"]]) == pytest.approx(1)
    assert rouge_l(["x"], [["a"]]) == 0
    assert rouge_l([], [["a"]]) == 0


def test_cider_worked_by_hand() -> None:
    # Of two pictures, "a" is in both references (idf 0), all else in one (idf log 2). The first caption is its only
    # reference: cosine 1 in the orders 1 to 2, no n-grams of 3 and 4: (1 + 1 + 0 + 0) / 4 · 10. The second says a word
    # of the other picture's and nothing of its own.
    assert cider_d([["a", "dog"], ["a", "dog"]], [[["a", "dog"]], [["a", "cat"]]]) == pytest.approx([5.0, 0.0])
    # A single right word has one order only.
    assert cider_d([["dog"], ["x"]], [[["dog"]], [["cat"]]]) == pytest.approx([2.5, 0.0])


# As the original tokenizer of the caption evaluation (Stanford CoreNLP 3.4.1, which needs Java) cut them, once.
PENN = {
    "A man's dog can't swim; it's well-known!": "a man 's dog ca n't swim it 's well-known",
    'Two "red" buses... (at 10:30, $3.50)': "two red buses -lrb- at 10:30 $ 3.50 -rrb-",
    "It's 5 o'clock": "it 's 5 o'clock",
    "U.S. flag on Mt. Rushmore": "u.s. flag on mt. rushmore",
    "rock 'n' roll": "rock 'n' roll",
    "[brackets] {braces}": "-lsb- brackets -rsb- -lcb- braces -rcb-",
    "hello.world": "hello.world",
    "Hard candy\u2014yum!": "hard candy yum",
    "Boom!!!": "boom !!!",
    "A US 10 cent piece ($.10) called a dime.": "a us 10 cent piece -lrb- $ .10 -rrb- called a dime",
    "A European coin of 1 euro (1 €).": "a european coin of 1 euro -lrb- 1 $ -rrb-",
    "Mars\u2014the red planet. It\u2019s just beyond earth.": "mars the red planet it 's just beyond earth",
    "One of the \u201cgas giants\u201d in our solar system.": "one of the gas giants in our solar system",
    "a black/white photo": "a black/white photo",
}


@pytest.mark.parametrize("text", PENN)
def test_english_is_cut_as_the_caption_evaluation_cuts(text: str) -> None:
    assert english_words(text) == PENN[text].split()


def test_chinese_is_cut_by_character_and_by_word() -> None:
    assert chinese_characters("一只睡觉的水豚。") == list("一只睡觉的水豚")
    assert chinese_words("一只睡觉的水豚。") == ["一只", "睡觉", "的", "水豚"]
    # Latin letters and digits stay together in either, full-width ones become half-width, marks go.
    assert chinese_characters("两台ｉＰｈｏｎｅ，3.5元！") == ["两", "台", "iphone", "3.5", "元"]
    assert chinese_words("两台ｉＰｈｏｎｅ，3.5元！") == ["两台", "iphone", "3.5", "元"]
    assert chinese_characters("，。 ") == chinese_words("，。 ") == []


def test_a_corpus_is_scored_by_every_cut_of_its_language() -> None:
    chinese = caption_scores([said for said, _ in CHINESE], [truths for _, truths in CHINESE], "zh")
    assert {name.split(".")[0] for name in chinese.metrics} == {"characters", "words"}
    assert chinese.metrics["characters.bleu_4"] == bleu(*CORPORA["Chinese characters"])[3]
    assert chinese.metrics["words.cider_d"] == pytest.approx(sum(cider_d(*CORPORA["Chinese words"])) / len(CHINESE))
    english = caption_scores(["A red bus."], [["a red bus"]], "en")
    assert english.metrics["words.rouge_l"] == 1
    assert english.each["words.rouge_l"] == [1.0]
    assert {name.split(".")[0] for name in english.metrics} == {"words"}
