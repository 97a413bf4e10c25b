"""Records with two pictures, and records with none.

pairs   "pair" (vqa, set "plain"): the first, the second, both, of one category or not; "next" (dialogue): a
        second picture in a later turn
words   "dialogue": what a word is in the other language, its category, small talk, a question without a picture
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from training.tiny import questions
from training.tiny.emoji import Concept
from training.tiny.records import (
    LANGUAGES,
    Fields,
    Said,
    Scene,
    dialogue,
    drawn,
    groups,
    names,
    swapped,
    talk,
    vqa,
)

_WHICH = [{language: questions.WHICH_PICTURE[language][place] for language in LANGUAGES} for place in (0, 1)]
# For every hundred words to translate: so many of each other kind.
_CATEGORIES, _TALKS, _NO_PICTURES = 28, 60, 32


def pair_fields(first: Concept, second: Concept, draw: random.Random) -> Fields:
    """The record of two drawings. Two thirds of its questions are about one of the two."""
    shown = (names(first), names(second))
    which = [vqa(drawn(_WHICH[place], draw), shown[place]) for place in (0, 1, 0, 1)]
    same = questions.YES if first.group_en == second.group_en else questions.NO
    return {
        "pair": [*which, _both(*shown, draw), vqa(drawn(questions.SAME_CATEGORY, draw), dict(same))],
        "next": dialogue(
            drawn(questions.NAME, draw),
            shown[0],
            drawn(questions.NEXT_PICTURE, draw),
            shown[1],
            images={0: [0], 2: [1]},
        ),
    }


def word_fields(scene: Scene, draw: random.Random) -> Iterator[Fields]:
    """Dialogues without a picture: every word once, and the other kinds in proportion."""
    words = list(scene.seen)
    for word in words:
        yield {"dialogue": dialogue(drawn(questions.TRANSLATE, draw, name=names(word)), swapped(names(word)))}
    for _ in range(_part(words, _CATEGORIES)):
        word = draw.choice(words)
        yield {"dialogue": dialogue(drawn(questions.WORD_CATEGORY, draw, name=names(word)), groups(word))}
    for _ in range(_part(words, _TALKS)):
        yield {"dialogue": talk(draw)}
    tasks = (questions.NAME, questions.CATEGORY, questions.NAME_IN_OTHER, questions.KEYWORDS)
    for _ in range(_part(words, _NO_PICTURES)):
        yield {"dialogue": dialogue(drawn(draw.choice(tasks), draw), dict(questions.NO_PICTURE))}


def _part(words: list[Concept], percent: int) -> int:
    return max(1, len(words) * percent // 100)


def _both(first: Said, second: Said, draw: random.Random) -> Fields:
    """Question and answer are one wording, so they are drawn together."""
    chosen = {language: draw.choice(questions.BOTH_PICTURES[language]) for language in LANGUAGES}
    return vqa(
        {language: chosen[language][0] for language in LANGUAGES},
        {
            language: chosen[language][1].format(first=first[language], second=second[language])
            for language in LANGUAGES
        },
    )
