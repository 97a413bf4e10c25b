"""What can be evaluated: how each task is asked by default, and how its answers are scored.

caption     BLEU, ROUGE-L, CIDEr-D
vqa, okvqa  VQAv2's rule over ten people's answers
gqa         the very answer
choice      the right option of several (ScienceQA)
exact       the very text of one of a record's fields
retrieval   picture to text and text to picture, by ITC, then ITM's re-ranking (training/scoring/zero_shot.py)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from training.data.templates import TEMPLATES, Wordings
from training.errors import BadConfig
from training.scoring.captioning import caption_scores
from training.scoring.choice import chosen
from training.scoring.item import Item
from training.scoring.result import Scores
from training.scoring.vqa import exactly, vqa_accuracy

Score = Callable[[Sequence[Item], Sequence[str]], Scores]


@dataclass(frozen=True)
class Task:
    """`field` and `templates`: how our own records are read and asked. `gaps`: metrics to compare languages by.

    `score` is None for a task in which nothing is said.
    """

    name: str
    field: str
    templates: str
    score: Score | None
    gaps: tuple[str, ...]


def _captions(items: Sequence[Item], said: Sequence[str]) -> Scores:
    return caption_scores(said, [item.truths for item in items], items[0].language)


def _people(items: Sequence[Item], said: Sequence[str]) -> Scores:
    return _mean("accuracy", [vqa_accuracy(one, item.truths, item.language) for item, one in _pairs(items, said)])


def _exact(items: Sequence[Item], said: Sequence[str]) -> Scores:
    return _mean("accuracy", [exactly(one, item.truths) for item, one in _pairs(items, said)])


def _choices(items: Sequence[Item], said: Sequence[str]) -> Scores:
    picks = [chosen(one, item.options, item.language) for item, one in _pairs(items, said)]
    right = _mean("accuracy", [float(pick == item.right) for item, pick in zip(items, picks, strict=True)])
    unread = sum(pick is None for pick in picks) / len(picks)
    chance = fmean(1 / len(item.options) for item in items)
    return Scores({**right.metrics, "no_option": unread, "chance": chance}, right.each)


def _mean(name: str, each: Sequence[float]) -> Scores:
    return Scores({name: fmean(each)}, {name: each})


def _pairs(items: Sequence[Item], said: Sequence[str]) -> zip[tuple[Item, str]]:
    return zip(items, said, strict=True)


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("caption", "caption", "caption_short", _captions, ("words.rouge_l", "words.cider_d")),
        Task("vqa", "vqa", "vqa_short", _people, ("accuracy",)),
        Task("okvqa", "vqa", "vqa_short", _people, ("accuracy",)),
        Task("gqa", "vqa", "vqa_short", _exact, ("accuracy",)),
        Task("choice", "choice", "choice", _choices, ("accuracy",)),
        Task("exact", "label", "classify", _exact, ("accuracy",)),
        Task("retrieval", "caption", "caption_short", None, ("itm_i2t_r1", "itm_t2i_r1")),
    )
}


@dataclass(frozen=True)
class Asking:
    """How a task is read and worded: the first wording of `templates`, or the language's own one in `prompts`.

    `field` is that of our own records, where it is not the task's.
    """

    task: Task
    field: str | None = None
    templates: str | None = None
    prompts: Mapping[str, str] | None = None
    brought: Mapping[str, Wordings] | None = None  # the dataset's own sets, which count first

    def question(self, language: str, question: str = "", options: Sequence[str] = ()) -> str:
        """Raises BadConfig where there is no such wording or it lacks a place for the question."""
        lettered = " ".join(f"({chr(ord('a') + number)}) {text}" for number, text in enumerate(options))
        wording = self._wording(language, has_question=bool(question))
        for part, text in (("{question}", question), ("{options}", lettered)):
            if text and part not in wording:
                raise BadConfig(f"the wording {wording!r} of the task {self.task.name} has no {part}")
            wording = wording.replace(part, text)
        return wording

    def _wording(self, language: str, *, has_question: bool) -> str:
        if self.prompts and language in self.prompts:
            return self.prompts[language]
        name = self.templates or ("vqa_short" if has_question and self.task.name == "exact" else self.task.templates)
        found = (self.brought or {}).get(name) or TEMPLATES.get(name)
        if not found or not found.get(language):
            known = ", ".join(sorted({*(self.brought or {}), *TEMPLATES}))
            raise BadConfig(f"there are no templates {name!r} in {language!r}, only {known}")
        return found[language][0]
