"""A checkpoint that is asked in this process, with and without pictures, and what of its answers is kept."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests import tiny
from tests.test_scoring_layouts import picture
from training.errors import BadData, BadSample
from training.scoring.ask import Ask
from training.scoring.checkpoint_target import CheckpointTarget
from training.scoring.evaluation import Examiner, Result, gaps
from training.scoring.item import Item, Picture
from training.scoring.store import Said, Store
from training.scoring.tasks import TASKS

COLOURS = ("red", "green", "blue", "yellow", "black")


def item(number: int, *colours: str, question: str = "What is this?", truth: str = "x") -> Item:
    return Item(str(number), "en", (truth,), question, tuple(Picture(picture, (colour,)) for colour in colours))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "reads the instruction"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CheckpointTarget:
    folder = tiny.build_checkpoint(tmp_path_factory.mktemp("checkpoint"), reads_instruction=request.param)
    return CheckpointTarget.load(folder, 8, "cpu")


async def said(target: CheckpointTarget, items: Sequence[Item]) -> list[Said]:
    found = {ask.item.key: answer async for ask, answer in target.answers([Ask(one, one.key) for one in items])}
    return [found[one.key] for one in items]


async def test_answers_do_not_depend_on_what_is_asked_beside(target: CheckpointTarget) -> None:
    """Of one picture and another question, several pictures, none, and the same picture twice."""
    items = [item(n, colour) for n, colour in enumerate(COLOURS)]
    items += [item(5, "red", question="它是什么？"), item(6, "red", "blue"), item(7, question="Hello"), item(8, "red")]
    together = await said(target, items)
    alone = [(await said(target, [one]))[0] for one in items]
    assert together == alone
    assert len({one.text for one in together}) > 4
    assert together[8] == together[0]


async def test_a_picture_that_cannot_be_decoded_fails_alone(target: CheckpointTarget) -> None:
    broken = Item("b", "en", ("x",), "What?", (Picture(lambda: b"\x89PNG\r\n\x1a\n nothing more"),))
    good, bad = await said(target, [item(0, "red"), broken])
    assert not good.failed
    assert bad.failed.startswith("bad picture: ")


@dataclass
class Parrot:
    """Answers with the question, and counts. Fails once `fails` were answered."""

    fails: int = 10**6
    identity: Mapping[str, object] = field(default_factory=lambda: {"parrot": 1})
    name: str = "parrot"
    heard: list[str] = field(default_factory=list)

    async def answers(self, asks: Sequence[Ask]) -> AsyncGenerator[tuple[Ask, Said], None]:
        for ask in asks:
            if len(self.heard) == self.fails:
                raise BadData("the parrot is dead")
            self.heard.append(ask.item.question)
            yield ask, Said("", "unavailable: asleep") if ask.item.question == "sleep" else Said(ask.item.question)


def parroted(count: int) -> list[Item]:
    return [item(n, question=f"q{n}", truth=f"q{n}" if n % 2 else "other") for n in range(count)]


async def test_what_was_answered_before_a_failure_is_kept(tmp_path: Path) -> None:
    parrot, beats = Parrot(fails=50), list[int]()
    with Store(tmp_path / "answers.sqlite") as store, pytest.raises(BadData, match="the parrot is dead"):
        await Examiner(parrot, store).answered(TASKS["exact"], parroted(80), beats.append)
    parrot.fails = 10**6
    with Store(tmp_path / "answers.sqlite") as store:
        result = await Examiner(parrot, store).answered(TASKS["exact"], parroted(80), beats.append)
    assert sorted(parrot.heard) == sorted(one.question for one in parroted(80))
    assert result.cached == 50
    assert result.scores.metrics == {"accuracy": 0.5}
    assert sum(beats) == 50 + 80


async def test_equal_questions_are_asked_once_and_other_targets_and_rounds_again(tmp_path: Path) -> None:
    parrot = Parrot()
    twice = [item(1, question="same"), item(2, question="same")]
    with Store(tmp_path / "answers.sqlite") as store:
        result = await Examiner(parrot, store).answered(TASKS["exact"], twice, lambda _: None)
        assert parrot.heard == ["same"]
        assert [one.text for one in result.said] == ["same", "same"]
        await Examiner(Parrot(identity={"parrot": 2}, heard=parrot.heard), store).answered(TASKS["exact"], twice, print)
        assert parrot.heard == ["same"] * 2
        assert store.round(parrot.identity, fresh=False) == 0
        assert store.round(parrot.identity, fresh=True) == 1
        await Examiner(parrot, store, 1).answered(TASKS["exact"], twice, lambda _: None)
        assert parrot.heard == ["same"] * 3
        assert store.round({"parrot": 2}, fresh=False) == 0
        # The same words about another picture are another question.
        shown = [item(1, "red", question="same"), item(2, "blue", question="same"), item(3, "red", question="same")]
        result = await Examiner(parrot, store, 1).answered(TASKS["exact"], shown, lambda _: None)
        assert (result.cached, parrot.heard) == (0, ["same"] * 5)


async def test_languages_are_compared_by_pictures_whatever_they_are_called(tmp_path: Path) -> None:
    """Each of two pictures is asked about twice, by files of different names."""
    both: list[Result] = []
    with Store(tmp_path / "answers.sqlite") as store:
        for language in ("en", "zh"):
            asked = [
                replace(
                    item(n, question="x", truth="x" if language == "en" else "y"), language=language, pictures=(one,)
                )
                for n, one in enumerate(Picture(lambda n=n: picture(COLOURS[n // 2])) for n in range(4))
            ]
            both.append(await Examiner(Parrot(), store).answered(TASKS["exact"], asked, lambda _: None))
    assert [len(set(result.shown)) for result in both] == [2, 2]
    ((task, found),) = gaps(both)
    assert (task.name, found.items, found.difference, found.p) == ("exact", 4, -1.0, None)


async def test_what_failed_for_the_moment_is_wrong_now_and_asked_again_later(tmp_path: Path) -> None:
    parrot = Parrot()
    asked = [item(1, question="sleep"), item(2, question="x")]
    with Store(tmp_path / "answers.sqlite") as store:
        for _ in range(2):
            result = await Examiner(parrot, store).answered(TASKS["exact"], asked, lambda _: None)
            assert (result.failed, result.scores.metrics["accuracy"]) == (1, 0.5)
    assert parrot.heard == ["sleep", "x", "sleep"]
    with closing(sqlite3.connect(tmp_path / "answers.sqlite")) as file:
        assert file.execute("SELECT text FROM answers").fetchall() == [("x",)]


async def test_pictures_that_are_not_there_are_left_out_and_named(tmp_path: Path) -> None:
    def missing() -> bytes:
        raise BadSample("9", "missing image: gone.png")

    lost = Item("9", "en", ("x",), "What?", (Picture(missing),))
    with Store(tmp_path / "answers.sqlite") as store:
        examiner = Examiner(Parrot(), store)
        result = await examiner.answered(TASKS["exact"], [lost, item(1, question="x")], lambda _: None)
        assert [one.key for one in result.items] == ["1"]
        assert [str(one) for one in result.bad] == ["9: missing image: gone.png"]
        assert result.scores.metrics["accuracy"] == 1
        with pytest.raises(BadData, match="none of 1 items can be used"):
            await examiner.answered(TASKS["exact"], [lost], lambda _: None)
