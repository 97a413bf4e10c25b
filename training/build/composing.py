"""The second half of a piece: looks the answers up, lets the gates decide, and makes records of what passes.

Rows come in order and everything that is decided follows from the row, the options and the ledger; so the result is the
same whatever the order in which answers came. Of a record only what is in all its languages is kept.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from training.build.checks import Checks
from training.build.layouts.layout import SourceRow
from training.build.options import TRANSLATED
from training.build.rows import Rows
from training.build.units import Read, units_of
from training.build.work import FIELD, Made, Plan, Work
from training.data.report import BadSamples
from training.data.writer import Sample
from training.errors import Stopped
from training.gates.gate import Finding, Reject
from training.gates.tally import Tally
from training.llm.asker import Asker
from training.llm.question import Failure
from training.stopping import StopSignal

_BATCH = 64
_ANSWER = "answer"
_UNANSWERED = Failure("unavailable", "the server gave no answer")


@dataclass
class _Draft:
    """A record in the making. `accepted` comes last."""

    source: SourceRow
    read: Read
    made: list[tuple[Made, list[Finding]]] = field(default_factory=list)
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    accepted: list[Made] = field(default_factory=list)


@dataclass
class Composing:
    """Of one piece. `samples` fills the counts as it goes."""

    plan: Plan
    rows: Rows
    asker: Asker
    checks: Checks
    runner: asyncio.Runner
    stop: StopSignal
    step: Callable[[], None]
    tally: Tally = field(default_factory=Tally)
    bad: BadSamples = field(default_factory=lambda: BadSamples(1.0))
    licences: Counter[str] = field(default_factory=Counter)
    empty: int = 0

    def samples(self) -> Iterator[Sample]:
        """Records and their pictures, in the order of the rows. Raises Stopped when asked to stop."""
        source, records = self.rows.read(self.bad, self.step), 0
        while some := list(islice(source, _BATCH)):
            if self.stop.requested:
                raise Stopped("stopped while writing; all answers are kept, and the same command writes it anew")
            drafts = [self._draft(row) for row in some]
            self._decide(drafts)
            for draft in drafts:
                fields = self._fields(draft)
                if fields is None:
                    self.empty += 1
                    continue
                for made, place in _places(draft):
                    self.checks.keep(records, made.field, place, made.row)
                records += 1
                self.licences[str(draft.source.licence)] += 1
                yield fields, draft.source.images

    def _draft(self, source: SourceRow) -> _Draft:
        draft = _Draft(source, units_of(source.fields, self.plan.options.language))
        if self.plan.undescribed(source):
            self.bad.add(0, [(source.key, "missing description: nothing tells what to generate about")])
        self.bad.add(0, [(source.key, reason) for reason in draft.read.unfit])
        for work in self.plan.works(source, draft.read):
            outcome = self.asker.recall(work.question) or _UNANSWERED
            if isinstance(outcome, Failure):
                self._lose(work, outcome)
                continue
            self._note(draft, work)
            for made in work.read(outcome.value):
                self.tally.looked[_ANSWER] += 1
                draft.made.append((made, self.checks.look(made.row, self.tally)))
        return draft

    def _lose(self, work: Work, failure: Failure) -> None:
        # What was said all the same shows why, to whoever looks at the report.
        detail = f"{failure.detail}: {failure.text}" if failure.text else failure.detail
        for row in work.lost:
            self.tally.looked[_ANSWER] += 1
            self.tally.verdict(row, [Reject(_ANSWER, failure.reason, detail)])

    def _note(self, draft: _Draft, work: Work) -> None:
        """Which question made it, for the record's provenance."""
        about = {"step": work.step, "model": self.asker.endpoint.model, "questions": []}
        note = draft.asked.setdefault(work.field, about)
        note["questions"].append(work.question.digest(self.asker.endpoint))

    def _decide(self, drafts: Sequence[_Draft]) -> None:
        """The gates that look at several rows at once, or remember: then each row's verdict, in order."""
        entries = [(draft, made, found) for draft in drafts for made, found in draft.made]
        self.runner.run(self.checks.look_closer([(made.row, found) for _, made, found in entries], self.tally))
        for draft, made, found in entries:
            if self.checks.settle(made.row, found, self.tally):
                draft.accepted.append(made)

    def _fields(self, draft: _Draft) -> Mapping[str, Any] | None:
        """The record; None when nothing of it is left."""
        # What is generated takes the place of what the source calls so.
        taken = {*TRANSLATED, *(FIELD[kind] for kind in self.plan.options.generate)}
        fields = {name: value for name, value in draft.source.fields.items() if name not in taken}
        kept = False
        for name in TRANSLATED:
            entries = [entry for one, entry in draft.read.whole if one == name]
            entries += [made.value for made in draft.accepted if made.field == name and self._is_translated(name)]
            entries += self._untouched(draft, name)
            if entries:
                fields[name] = entries if isinstance(draft.source.fields[name], list) else entries[0]
                kept = True
        for made in draft.accepted:
            if made.field not in TRANSLATED:
                fields.setdefault(made.field, []).append(made.value)
                kept = True
        if not kept:
            return None
        fields["provenance"] = self._provenance(draft)
        return fields

    def _is_translated(self, name: str) -> bool:
        return name in self.plan.options.translate

    def _untouched(self, draft: _Draft, name: str) -> list[Any]:
        """Entries that nobody asked to translate stay, and say their language."""
        language = self.plan.options.language
        if self._is_translated(name):
            return []
        return [
            unit.value({language: [line.text for line in unit.lines]})
            for unit in draft.read.units
            if unit.field == name
        ]

    def _provenance(self, draft: _Draft) -> dict[str, Any]:
        source = draft.source
        fields = {made.field for made in draft.accepted}
        return {
            "source": source.source,
            "place": source.place,
            "licence": source.licence,
            "images": list(source.image_digests),
            "made": {name: note for name, note in sorted(draft.asked.items()) if name in fields},
        }


def _places(draft: _Draft) -> Iterator[tuple[Made, int]]:
    """What was made of a record, each with its place among the entries of its field: behind what needed no making."""
    taken = Counter[str](name for name, _ in draft.read.whole)
    for made in draft.accepted:
        yield made, taken[made.field]
        taken[made.field] += 1
