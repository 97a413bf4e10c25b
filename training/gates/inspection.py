"""All gates in their order, and the count of what they find.

The gates that need nothing but the row look at every row, so that their counts do not depend on their order. What is
dear or has a memory (near duplicates, agreement with the picture, back-translation) looks only at rows that those
passed.
"""

from __future__ import annotations

from collections.abc import Sequence

from training.gates.copied import Copied
from training.gates.form import Form, made_tokens
from training.gates.gate import Finding, Gate, Reject
from training.gates.language import Language
from training.gates.lengths import LengthRatio, length_ratio
from training.gates.names_kept import NamesKept
from training.gates.numbers_kept import NumbersKept
from training.gates.refusals import Refusals
from training.gates.row import Row
from training.gates.tally import Tally
from training.recipe import Text


def pure_gates(limits: Text | None = None, *, prompts: Sequence[str] = ()) -> tuple[Gate, ...]:
    """Those that look at one row and remember nothing. `prompts` are the texts that the language model was given."""
    form = Form(limits) if limits is not None else Form()
    return (form, Refusals(), Copied(tuple(prompts)), Language(), LengthRatio(), NumbersKept(), NamesKept())


def inspect(row: Row, gates: Sequence[Gate], tally: Tally) -> list[Finding]:
    """What all of the gates find, in their order. A row of broken form is shown to no gate after `Form`.

    Only looks are counted here: `Tally.verdict` counts the row when all gates of a run are through with it.
    """
    found: list[Finding] = []
    for gate in gates:
        tally.looked[gate.name] += 1
        finding = gate.check(row)
        if finding is None:
            continue
        found.append(finding)
        if isinstance(finding, Reject) and isinstance(gate, Form):
            break
    return found


def passes(findings: Sequence[Finding]) -> bool:
    """Whether none of them is a reject."""
    return not any(isinstance(finding, Reject) for finding in findings)


def measure(row: Row, tally: Tally) -> None:
    """Puts the row's lengths into the histograms."""
    for pair in row.pairs:
        tally.measure("length ratio", length_ratio(pair.en, pair.zh))
    for tokens in made_tokens(row):
        tally.measure("tokens", float(tokens))
