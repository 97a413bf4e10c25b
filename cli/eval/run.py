"""Runs an evaluation: reads the items, asks the target, shows how far it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cli.eval.plan import Plan
from training.errors import BadData, BadSample
from training.scoring.ask import Target
from training.scoring.evaluation import Examiner, Result, gaps
from training.scoring.gap import Gap
from training.scoring.item import Item
from training.scoring.store import Store
from training.scoring.tasks import TASKS, Task
from training.spaced import spaced


@dataclass(frozen=True)
class Found:
    """All that an evaluation found."""

    name: str
    identity: Mapping[str, object]
    results: Sequence[Result]
    gaps: Sequence[tuple[Task, Gap]]


async def evaluate(plan: Plan, api_key: str | None) -> Found:
    """Raises TrainingError, CheckpointError."""
    work = list(_work(plan))
    target = await open_target(plan, api_key)
    results: list[Result] = []
    with _progress() as progress, Store(plan.store / "answers.sqlite") as store:
        examiner = Examiner(target, store, store.round(target.identity, fresh=plan.fresh))
        for one in work:
            bar = progress.add_task(f"{one.task.name}/{one.language}", total=len(one.items), doing="")
            results.append(await _examined(plan, examiner, one, Bar(progress, bar)))
    return Found(target.name, target.identity, results, gaps(results))


@dataclass(frozen=True)
class Work:
    """What is asked in one language of one task, and what cannot be."""

    task: Task
    language: str
    items: Sequence[Item]
    bad: Sequence[BadSample]


@dataclass(frozen=True)
class Bar:
    """One line of the progress."""

    progress: Progress
    line: TaskID

    def advance(self, more: int) -> None:
        self.progress.advance(self.line, more)

    def doing(self, what: str) -> None:
        self.progress.update(self.line, doing=what)

    def finish(self) -> None:
        total = self.progress.tasks[self.line].total
        self.progress.update(self.line, completed=total, doing="")


async def _examined(plan: Plan, examiner: Examiner, work: Work, bar: Bar) -> Result:
    if work.task.score is not None:
        result = await examiner.answered(work.task, work.items, bar.advance, work.bad)
        bar.finish()
        return result
    from training.scoring.checkpoint_target import CheckpointTarget  # noqa: PLC0415  (torch: a URL does without)
    from training.scoring.zero_shot import Retrieval  # noqa: PLC0415

    assert isinstance(examiner.target, CheckpointTarget)  # a plan with retrieval has a checkpoint
    retrieval = Retrieval(examiner.target, Path(plan.target), plan.store, examiner.round, plan.top_k, bar.doing)
    result = retrieval(work.task, work.items, work.bad)
    bar.finish()
    return result


def _work(plan: Plan) -> Iterator[Work]:
    for name in plan.tasks:
        task, asking = plan.asking(name)
        items: dict[str, dict[str, Item]] = {}
        bad: list[BadSample] = []
        for source in plan.sources:
            for one in source.items(asking, plan.languages):
                if isinstance(one, BadSample):
                    bad.append(one)
                elif one.key in items.setdefault(one.language, {}):
                    raise BadData(f"{source.path}: two items in {one.language!r} have the key {one.key!r}")
                else:
                    items[one.language][one.key] = one
        if not any(items.values()):
            raise BadData(f"{name}: nothing can be asked: {bad[0] if bad else 'no record has a text in the language'}")
        keys = list(dict.fromkeys(key for some in items.values() for key in some))
        kept = {keys[place] for place in spaced(len(keys), plan.limit)}
        for language in sorted(items):
            yield Work(task, language, [item for key, item in items[language].items() if key in kept], bad)


async def open_target(plan: Plan, api_key: str | None) -> Target:
    """Raises CheckpointError for a folder that is no checkpoint, BadConfig for a URL where nothing can be asked."""
    if plan.is_url:
        from training.scoring.url_target import UrlTarget, first_model, open_url  # noqa: PLC0415  (openai: slow)

        model = plan.model or await first_model(plan.target, api_key)
        endpoint = open_url(plan.target, model, api_key, plan.concurrency)
        return UrlTarget(endpoint, plan.store / "ledger.sqlite", plan.max_tokens)
    import torch  # noqa: PLC0415  (a URL does without it)

    from training.scoring.checkpoint_target import CheckpointTarget  # noqa: PLC0415

    if plan.threads:
        torch.set_num_threads(plan.threads)
    speaks = any(TASKS[name].score is not None for name in plan.tasks)
    return CheckpointTarget.load(Path(plan.target), plan.max_tokens, plan.device, speaks=speaks)


@contextmanager
def _progress() -> Iterator[Progress]:
    """On stderr, so that the table alone is on stdout."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[doing]}"), console=Console(stderr=True)) as progress:
        yield progress
