"""The gates of one piece, the cheap ones first: by the row alone, with help, against all others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from training.build.candidates import Candidates
from training.build.options import GateOptions
from training.build.prompts import generate, translate
from training.gates.back_translation import BackTranslation
from training.gates.duplicates import NearDuplicates
from training.gates.gate import Finding, Gate
from training.gates.inspection import inspect, measure, passes, pure_gates
from training.gates.row import Row
from training.gates.tally import Tally
from training.llm.asker import Asker
from training.llm.question import Answer, Failure, Question

if TYPE_CHECKING:
    from training.gates.agreement import Agreement

PROMPTS = (translate.INSTRUCTION, generate.INSTRUCTION, *generate.KINDS.values())
_NOT_ASKED = Failure("unavailable", "the server gave no answer")
Looked = Sequence[tuple[Row, list[Finding]]]


class Checks(AbstractContextManager["Checks"]):
    """Of one piece, in the order of its rows. Asks nobody: back-translations are looked up in the asker's ledger.

    One of several pieces does not know what the earlier ones have: it passes `candidates`, a folder for entries that
    are kept unless they are near duplicates, which is found out when the pieces are joined.
    """

    def __init__(self, options: GateOptions, asker: Asker, candidates: Path | None = None) -> None:
        self._pure = pure_gates(prompts=PROMPTS)
        self._asker, self._open = asker, ExitStack()
        self.back = BackTranslation(self._recalled, options.back_translation) if options.back_translation else None
        self._duplicates: NearDuplicates | None = None
        self._candidates: Candidates | None = None
        if options.near_duplicates and candidates is not None:
            self._candidates = self._open.enter_context(Candidates(candidates))
        elif options.near_duplicates:
            self._duplicates = self._open.enter_context(NearDuplicates())
        self._agreement = _agreement(options)

    @property
    def agreement(self) -> dict[str, str] | None:
        """Fingerprints of the checkpoint that scores texts and pictures, if one does."""
        return self._agreement.fingerprints if self._agreement is not None else None

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def look(self, row: Row, tally: Tally) -> list[Finding]:
        """What those gates find that need nothing but the row."""
        return inspect(row, self._pure, tally)

    def back_question(self, row: Row) -> Question | None:
        """What must be asked of a row before the gates look closer; None for most."""
        return back_question(self.back, self._pure, row) if self.back is not None else None

    async def look_closer(self, rows: Looked, tally: Tally) -> None:
        """Adds what the dear gates find to the findings of rows that passed so far."""
        if self._agreement is not None:
            some = [(row, found) for row, found in rows if passes(found)]
            plain = [row for row, _ in some]
            scores = self._agreement.scores(plain)
            _add(self._agreement.name, some, scores, self._agreement.findings(plain, scores), tally)
        if self.back is not None:
            some = [(row, found) for row, found in rows if passes(found) and self.back.chosen(row)]
            plain = [row for row, _ in some]
            scores = await self.back.scores(plain)
            _add(self.back.name, some, scores, self.back.findings(plain, scores), tally)

    def settle(self, row: Row, found: list[Finding], tally: Tally) -> bool:
        """The row's verdict, counted; whether it is kept as far as is known. Called for every row, in order."""
        measure(row, tally)
        if self._candidates is not None:
            tally.looked[NearDuplicates.name] += passes(found)
            return tally.note(row, found) is None
        if self._duplicates is not None and passes(found):
            tally.looked[NearDuplicates.name] += 1
            finding = self._duplicates.check(row)
            if finding is None:
                self._duplicates.keep(row)
            else:
                found.append(finding)
        return tally.verdict(row, found) is None

    def keep(self, record: int, field: str, place: int, row: Row) -> None:
        """Told of every row that is kept, when it stands in a record as entry `place` of a field."""
        if self._candidates is not None:
            self._candidates.add(record, field, place, row)

    async def _recalled(self, question: Question) -> Answer | Failure:
        return self._asker.recall(question) or _NOT_ASKED


def back_question(back: BackTranslation, gates: Sequence[Gate], row: Row) -> Question | None:
    """Of a row in the sample that the gates let pass, which need nothing but the row."""
    if not back.chosen(row) or not passes(inspect(row, gates, Tally(samples=0))):
        return None
    return back.question(row)


def _agreement(options: GateOptions) -> Agreement | None:
    if options.agreement is None:
        return None
    from training.gates.agreement import Agreement  # noqa: PLC0415  torch takes seconds

    return Agreement(Path(options.agreement), options.least_agreement)


def _add(
    name: str, some: Looked, scores: Sequence[float | None], findings: Sequence[Finding | None], tally: Tally
) -> None:
    for (_, found), score, finding in zip(some, scores, findings, strict=True):
        tally.looked[name] += 1
        if score is not None:
            tally.measure(name, score)
        if finding is not None:
            found.append(finding)
