"""Dialogues about pictures, drawn at random from the questions and the names.

A dialogue is a list of turns of `ziya.prompt` plus the answer that ends it. Its images are numbers: 0 is
the picture that a training row is about, 1 is another one. A dialogue without images must be answered
from the text alone. Only seen concepts are ever named.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.tiny import questions
from training.tiny.emoji import Concept
from ziya.prompt import Turn

LANGUAGES = ("en", "zh")
OTHER = {"en": "zh", "zh": "en"}
MAIN, EXTRA = 0, 1


@dataclass(frozen=True)
class Dialogue:
    """`turns` ends with a question; `answer` is what the model is to say."""

    turns: tuple[Turn[int], ...]
    answer: str


@dataclass(frozen=True)
class Scene:
    """What a dialogue can be about: the row's picture, another picture, all seen concepts."""

    main: Concept
    extra: Concept
    seen: Sequence[Concept]
    by_group: dict[str, list[Concept]]


def ask(question: str, answer: str, images: tuple[int, ...] = (MAIN,)) -> Dialogue:
    return Dialogue((Turn("user", question, images),), answer)


def then(first: Dialogue, question: str, answer: str, images: tuple[int, ...] = ()) -> Dialogue:
    """`first`, its answer, and one more question."""
    turns = (*first.turns, Turn[int]("assistant", first.answer), Turn("user", question, images))
    return Dialogue(turns, answer)


def name(scene: Scene, draw: random.Random, language: str) -> Dialogue:
    return ask(draw.choice(questions.NAME[language]), scene.main.name(language))


def name_in_other(scene: Scene, draw: random.Random, language: str) -> Dialogue:
    return ask(draw.choice(questions.NAME_IN_OTHER[language]), scene.main.name(OTHER[language]))


def category(scene: Scene, draw: random.Random, language: str) -> Dialogue:
    return ask(draw.choice(questions.CATEGORY[language]), scene.main.group(language))


def describe(scene: Scene, draw: random.Random, language: str) -> Dialogue:
    question, answer = draw.choice(questions.DESCRIBE[language])
    return ask(question, answer.format(name=scene.main.name(language), group=scene.main.group(language)))


def verify(scene: Scene, draw: random.Random, language: str) -> Dialogue:
    """Half the asked names are right; half of the wrong ones are from the same group."""
    asked = scene.main
    if draw.random() < 0.5:
        asked = draw.choice(scene.by_group[asked.group_en] if draw.random() < 0.5 else scene.seen)
    answer = questions.YES if asked is scene.main else questions.NO
    return ask(draw.choice(questions.VERIFY[language]).format(name=asked.name(language)), answer[language])


def verify_category(scene: Scene, draw: random.Random, language: str) -> Dialogue:
    asked = scene.main if draw.random() < 0.5 else draw.choice(scene.seen)
    answer = questions.YES if asked.group_en == scene.main.group_en else questions.NO
    question = draw.choice(questions.VERIFY_CATEGORY[language])
    return ask(question.format(group=asked.group(language)), answer[language])


def keywords(scene: Scene, draw: random.Random, language: str) -> Dialogue:
    words = scene.main.keywords_zh if language == "zh" else scene.main.keywords_en
    return ask(draw.choice(questions.KEYWORDS[language]), questions.KEYWORD_JOIN[language].join(words[:3]))


def follow_up(scene: Scene, draw: random.Random, language: str) -> Dialogue:
    """Two or three turns about one picture."""
    first = draw.choice((name, category, describe, verify))
    dialogue = first(scene, draw, language)
    for _ in range(draw.choice((1, 1, 2))):
        spoken = draw.choice(LANGUAGES)
        if draw.random() < 0.5:
            dialogue = then(dialogue, draw.choice(questions.FOLLOW_NAME[spoken]), scene.main.name(spoken))
        else:
            dialogue = then(dialogue, draw.choice(questions.FOLLOW_CATEGORY[spoken]), scene.main.group(spoken))
    return dialogue


def two_pictures(scene: Scene, draw: random.Random, language: str) -> Dialogue:
    first, second = scene.main, scene.extra
    kind = draw.random()
    if kind < 0.7:
        number = draw.randrange(2)
        question = draw.choice(questions.WHICH_PICTURE[language][number])
        return ask(question, (first, second)[number].name(language), (MAIN, EXTRA))
    if kind < 0.85:
        question, answer = draw.choice(questions.BOTH_PICTURES[language])
        names = answer.format(first=first.name(language), second=second.name(language))
        return ask(question, names, (MAIN, EXTRA))
    same = questions.YES if first.group_en == second.group_en else questions.NO
    return ask(draw.choice(questions.SAME_CATEGORY[language]), same[language], (MAIN, EXTRA))


def next_picture(scene: Scene, draw: random.Random, language: str) -> Dialogue:
    """A second picture shown in a later turn."""
    first = name(scene, draw, language)
    return then(first, draw.choice(questions.NEXT_PICTURE[language]), scene.extra.name(language), (EXTRA,))


def translate(scene: Scene, draw: random.Random, language: str) -> Dialogue:
    word = draw.choice(scene.seen)
    question = draw.choice(questions.TRANSLATE[language]).format(name=word.name(language))
    return ask(question, word.name(OTHER[language]), ())


def word_category(scene: Scene, draw: random.Random, language: str) -> Dialogue:
    word = draw.choice(scene.seen)
    question = draw.choice(questions.WORD_CATEGORY[language]).format(name=word.name(language))
    return ask(question, word.group(language), ())


def chat(scene: Scene, draw: random.Random, language: str) -> Dialogue:
    wordings, answer = draw.choice(questions.CHAT[language])
    return ask(draw.choice(wordings), answer, () if draw.random() < 0.8 else (MAIN,))


def no_picture(scene: Scene, draw: random.Random, language: str) -> Dialogue:
    tasks = (questions.NAME, questions.CATEGORY, questions.NAME_IN_OTHER, questions.KEYWORDS)
    return ask(draw.choice(draw.choice(tasks)[language]), questions.NO_PICTURE[language], ())


Task = Callable[[Scene, random.Random, str], Dialogue]
SHARES: dict[Task, float] = {
    name: 54,
    category: 13,
    describe: 7,
    verify: 6,
    verify_category: 1,
    keywords: 3,
    name_in_other: 4,
    follow_up: 5,
    two_pictures: 3.5,
    next_picture: 1,
    translate: 2.5,
    word_category: 0.7,
    chat: 1.5,
    no_picture: 0.8,
}


def draw_dialogue(scene: Scene, draw: random.Random) -> Dialogue:
    """One dialogue of a random task in a random language."""
    task = draw.choices(list(SHARES), weights=list(SHARES.values()))[0]
    return task(scene, draw, draw.choice(LANGUAGES))
