"""A task on items: asks what the store does not have, scores what was said, and compares the languages.

Every answer is in the store before it counts. Items whose pictures cannot be read are left out and named; a model that
refuses or fails has answered nothing, which is scored like any wrong answer and counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from statistics import fmean

from training.errors import BadConfig, BadData, BadSample
from training.scoring.ask import Ask, Target
from training.scoring.gap import Gap, gap
from training.scoring.item import Item, Picture
from training.scoring.result import Scores
from training.scoring.store import BAD_PICTURE, UNAVAILABLE, Said, Store, digest_of
from training.scoring.tasks import Task

Beat = Callable[[int], None]
_WRITE = 32


@dataclass(frozen=True)
class Result:
    """One task in one language. `items`, `said`, `shown` and each list of `scores.each` are in one order.

    `shown` are the digests of an item's pictures.
    """

    task: Task
    language: str
    items: Sequence[Item]
    said: Sequence[Said]
    shown: Sequence[tuple[str, ...]]
    scores: Scores
    bad: Sequence[BadSample] = ()
    cached: int = 0
    notes: Sequence[str] = field(default=())

    @property
    def failed(self) -> int:
        """Items without an answer."""
        return sum(bool(one.failed) for one in self.said)

    @property
    def unavailable(self) -> int:
        """Of these, the ones that failed for the moment: whoever evaluates again asks them again."""
        return sum(one.failed.startswith(UNAVAILABLE) for one in self.said)

    def by_key(self, metric: str) -> dict[str, float]:
        """The items' scores, for comparing the same items."""
        return {item.key: score for item, score in zip(self.items, self.scores.each[metric], strict=True)}

    def kinds(self) -> dict[str, dict[str, float]]:
        """Mean scores of each kind of item, where there are several kinds."""
        places: dict[str, list[int]] = {}
        for place, item in enumerate(self.items):
            places.setdefault(item.kind, []).append(place)
        if len(places) < 2:
            return {}
        return {
            kind: {"items": len(some)}
            | {name: fmean(each[at] for at in some) for name, each in self.scores.each.items()}
            for kind, some in sorted(places.items())
        }


@dataclass(frozen=True)
class Examiner:
    """Asks `target` what `store` does not have of this round."""

    target: Target
    store: Store
    round: int = 0
    _digests: dict[Picture, str] = field(default_factory=dict)

    async def answered(self, task: Task, items: Sequence[Item], beat: Beat, bad: Sequence[BadSample] = ()) -> Result:
        """Asks and scores. `beat` hears how many more answers are known.

        Raises BadConfig for a task that is not asked, BadData when no item can be used, and what the target raises
        when nobody can be asked; then what was answered is kept.
        """
        if task.score is None:
            raise BadConfig(f"{task.name} is not a question that can be asked")
        asks, wrong = self._asks(items)
        said = self.store.known([ask.digest for ask in asks])
        cached = sum(ask.digest in said for ask in asks)
        beat(cached + len(wrong))
        await self._ask([ask for ask in asks if ask.digest not in said], said, beat)
        broken = [said[ask.digest].failed.startswith(BAD_PICTURE) for ask in asks]
        usable = [ask for ask, is_broken in zip(asks, broken, strict=True) if not is_broken]
        wrong += [
            BadSample(ask.item.key, said[ask.digest].failed)
            for ask, is_broken in zip(asks, broken, strict=True)
            if is_broken
        ]
        if not usable:
            raise BadData(f"{task.name}: none of {len(items)} items can be used, such as {next(iter(wrong), None)}")
        answers = [said[ask.digest] for ask in usable]
        kept = [ask.item for ask in usable]
        scores = task.score(kept, [one.text for one in answers])
        shown = [tuple(map(self._digest, item.pictures)) for item in kept]
        return Result(task, kept[0].language, kept, answers, shown, scores, [*bad, *wrong], cached)

    def _asks(self, items: Sequence[Item]) -> tuple[list[Ask], list[BadSample]]:
        asks: list[Ask] = []
        wrong: list[BadSample] = []
        identity = {**self.target.identity, "round": self.round}
        for item in items:
            try:
                pictures = [self._digest(picture) for picture in item.pictures]
                asks.append(Ask(item, digest_of(identity, item.question, pictures), self.round))
            except BadSample as error:
                wrong.append(error)
        return asks, wrong

    def _digest(self, picture: Picture) -> str:
        if picture not in self._digests:
            self._digests[picture] = hashlib.sha256(picture()).hexdigest()
        return self._digests[picture]

    async def _ask(self, asks: Sequence[Ask], said: dict[str, Said], beat: Beat) -> None:
        """Fills `said`; a question that stands there twice is asked once."""
        once = list({ask.digest: ask for ask in asks}.values())
        fresh: list[tuple[str, Said]] = []

        def write() -> None:
            self.store.keep(fresh)
            said.update(fresh)
            beat(len(fresh))
            fresh.clear()

        try:
            async with aclosing(self.target.answers(once)) as stream:
                async for ask, answer in stream:
                    fresh.append((ask.digest, answer))
                    if len(fresh) == _WRITE:
                        write()
        finally:
            write()


def gaps(results: Sequence[Result]) -> list[tuple[Task, Gap]]:
    """Of each task that was evaluated in both languages, on the items they share."""
    found = []
    by_task: dict[str, dict[str, Result]] = {}
    for result in results:
        by_task.setdefault(result.task.name, {})[result.language] = result
    for languages in by_task.values():
        if languages.keys() >= {"en", "zh"}:
            task = languages["en"].task
            english = languages["en"]
            about = {item.key: shown or item.key for item, shown in zip(english.items, english.shown, strict=True)}
            for metric in task.gaps:
                one = gap(metric, languages["en"].by_key(metric), languages["zh"].by_key(metric), about)
                found += [(task, one)] if one else []
    return found
