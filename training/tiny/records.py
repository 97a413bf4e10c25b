"""What is asked about one drawing, as a record: every text in both languages, so that a source picks the language.

Fields, and the task and template set that a source asks them with:

    caption    the exact name             caption (and classify), set "name"
    other      the name in the other language     classify, set "other"
    category   the category                       classify, set "category"
    keywords   three keywords                     classify, set "keywords"
    describe   a sentence                         vqa, set "plain"
    verify     yes or no to a name or category    vqa, set "plain"
    chat       two or three turns                 dialogue
    talk       small talk beside a picture        dialogue

Only concepts of `Scene.seen` are ever named, so nothing unseen leaks into the questions.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from training.tiny import questions
from training.tiny.emoji import Concept, Picture

LANGUAGES = ("en", "zh")
Said = dict[str, str]
Fields = dict[str, Any]

TEMPLATES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "name": questions.NAME,
    "other": questions.NAME_IN_OTHER,
    "category": questions.CATEGORY,
    "keywords": questions.KEYWORDS,
    "plain": dict.fromkeys(LANGUAGES, ("{question}",)),
}


@dataclass(frozen=True)
class Scene:
    """The concepts that questions may name."""

    seen: Sequence[Concept]

    @cached_property
    def by_group(self) -> Mapping[str, Sequence[Concept]]:
        """The concepts of each category, by its English name."""
        groups: dict[str, list[Concept]] = {}
        for concept in self.seen:
            groups.setdefault(concept.group_en, []).append(concept)
        return groups


def picture_fields(picture: Picture, scene: Scene, draw: random.Random) -> Fields:
    """The whole record of one drawing."""
    concept = picture.concept
    return {
        "id": f"{picture.style}/{concept.unified}",
        "style": picture.style,
        "seen": concept.seen,
        "group": concept.unified,
        "labels": {"concept": concept.unified, "group": concept.group_en, "subgroup": concept.subgroup},
        "caption": names(concept),
        "other": swapped(names(concept)),
        "category": groups(concept),
        "keywords": _keywords(concept),
        "describe": _describe(concept),
        "verify": _verify(concept, scene, draw),
        "chat": [_follow_ups(concept, scene, draw) for _ in range(4)],
        "talk": talk(draw),
    }


def names(concept: Concept) -> Said:
    """The concept's name in each language."""
    return {language: concept.name(language) for language in LANGUAGES}


def groups(concept: Concept) -> Said:
    """The name of the concept's category in each language."""
    return {language: concept.group(language) for language in LANGUAGES}


def swapped(said: Said) -> Said:
    """English where Chinese is spoken, and the other way round."""
    return {"en": said["zh"], "zh": said["en"]}


def drawn(wordings: Mapping[str, Sequence[str]], draw: random.Random, **parts: Said) -> Said:
    """One wording in each language, with its placeholders filled in that language."""
    return {
        language: draw.choice(wordings[language]).format(**{name: said[language] for name, said in parts.items()})
        for language in LANGUAGES
    }


def vqa(question: Said, answer: Said) -> Fields:
    """One question with its answer."""
    return {"question": question, "answer": answer}


def dialogue(*said: Said, images: Mapping[int, Sequence[int]] | None = None) -> Fields:
    """Questions and answers in turn; `images` gives the pictures that a turn shows (default: all in the first)."""
    turns: list[Fields] = []
    for number, text in enumerate(said):
        turns.append({"role": ("user", "assistant")[number % 2], "text": text})
        if images and number in images:
            turns[-1]["images"] = list(images[number])
    return {"turns": turns}


def talk(draw: random.Random) -> Fields:
    """A greeting or a question about the model; both languages have the same ones in the same order."""
    number = draw.randrange(len(questions.CHAT["en"]))
    asked = {language: draw.choice(questions.CHAT[language][number][0]) for language in LANGUAGES}
    return dialogue(asked, {language: questions.CHAT[language][number][1] for language in LANGUAGES})


def _keywords(concept: Concept) -> Said:
    words = {"en": concept.keywords_en, "zh": concept.keywords_zh}
    return {
        language: questions.KEYWORD_JOIN[language].join(words[language][:3]) or concept.name(language)
        for language in LANGUAGES
    }


def _describe(concept: Concept) -> list[Fields]:
    """Each wording has its own kind of answer; the languages have them in the same order."""
    pairs = zip(questions.DESCRIBE["en"], questions.DESCRIBE["zh"], strict=True)
    return [
        vqa({"en": english[0], "zh": chinese[0]}, _filled({"en": english[1], "zh": chinese[1]}, concept))
        for english, chinese in pairs
    ]


def _filled(said: Said, concept: Concept) -> Said:
    return {
        language: text.format(name=concept.name(language), group=concept.group(language))
        for language, text in said.items()
    }


def _verify(concept: Concept, scene: Scene, draw: random.Random) -> list[Fields]:
    """As many right as wrong names; half of the wrong ones are from the same category. And two categories."""
    kin = [other for other in scene.by_group.get(concept.group_en, ()) if other is not concept] or scene.seen
    asked = [concept, draw.choice(kin), concept, draw.choice(scene.seen), concept, draw.choice(kin)]
    asked_names = [
        vqa(drawn(questions.VERIFY, draw, name=names(other)), _yes_or_no(other is concept)) for other in asked
    ]
    asked_groups = [
        vqa(drawn(questions.VERIFY_CATEGORY, draw, group=groups(other)), _yes_or_no(other.group_en == concept.group_en))
        for other in (concept, draw.choice(scene.seen))
    ]
    return asked_names + asked_groups


def _yes_or_no(right: bool) -> Said:
    return dict(questions.YES if right else questions.NO)


def _follow_ups(concept: Concept, scene: Scene, draw: random.Random) -> Fields:
    """A question about the picture and one or two more; a later one may be asked in the other language."""
    said = _opening(concept, scene, draw)
    for _ in range(draw.choice((1, 1, 2))):
        wordings, answer = draw.choice(
            ((questions.FOLLOW_NAME, names(concept)), (questions.FOLLOW_CATEGORY, groups(concept)))
        )
        more = [drawn(wordings, draw), answer]
        said += [swapped(text) for text in more] if draw.random() < 0.5 else more
    return dialogue(*said)


def _opening(concept: Concept, scene: Scene, draw: random.Random) -> list[Said]:
    kind = draw.randrange(4)
    if kind == 0:
        return [drawn(questions.NAME, draw), names(concept)]
    if kind == 1:
        return [drawn(questions.CATEGORY, draw), groups(concept)]
    asked = draw.choice(_describe(concept) if kind == 2 else _verify(concept, scene, draw))
    return [asked["question"], asked["answer"]]
