"""Translated back, does a text still say what the source said? Asked on a sample, for every row costs a question.

The sample is fixed by the rows' digests. The language model gets the translations alone, and its answer is compared
with the source by chrF (Popović 2015; sacrebleu's, 0 to 100), which goes by characters and so serves both languages.
Below `DOUBT` a row is counted, below `REJECT` thrown away: of pairs of unrelated English captions 95 % have a chrF
below 18 (docs/data-gates.md). A good translation may come back in other words, so the borders are low.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from training.gates.gate import Doubt, Finding, Reject
from training.gates.row import Line, Row
from training.llm.question import Answer, Failure, Question

REJECT, DOUBT = 15.0, 30.0
_NAMES = {"en": "English", "zh": "Chinese"}
# Of English text, for a character of its Chinese translation.
_LETTERS = 3
_INSTRUCTION = (
    "Translate each text of the JSON list into {language}, as close to the words as the language allows. "
    'Answer with a JSON object {{"texts": [...]}} that has as many texts in the same order.'
)
Ask = Callable[[Question], Awaitable[Answer | Failure]]


@dataclass(frozen=True)
class BackTranslation:
    """`ask` puts a question, as `training.llm.asker.Asker.ask` does; `share` of the translated rows are asked for."""

    ask: Ask
    share: float = 0.01
    reject: float = REJECT
    doubt: float = DOUBT
    name: str = field(default="back-translation", init=False)

    def chosen(self, row: Row) -> bool:
        """Whether the row is in the sample."""
        return row.translated and row.share(self.name) < self.share

    def likely(self, row: Row) -> Question:
        """What would be asked for a row that is not translated yet: a text of the length it is likely to have."""
        target = "zh" if row.language == "en" else "en"
        return self.question(replace(row, made={target: tuple(_as_long(line, target) for line in row.source)}))

    def question(self, row: Row) -> Question:
        """What is asked for a row of the sample."""
        (lines,) = row.made.values()
        texts = [line.text for line in lines]
        shape = {"type": "array", "items": {"type": "string"}, "minItems": len(texts), "maxItems": len(texts)}
        return Question(
            messages=(
                {"role": "system", "content": _INSTRUCTION.format(language=_NAMES[row.language])},
                {"role": "user", "content": json.dumps(texts, ensure_ascii=False)},
            ),
            schema={
                "type": "object",
                "properties": {"texts": shape},
                "required": ["texts"],
                "additionalProperties": False,
            },
            max_tokens=128 + 16 * len(texts) + sum(len(line.text) for line in row.source),
        )

    async def scores(self, rows: Sequence[Row]) -> list[float | None]:
        """chrF of each row in the sample whose question was answered; None for all others. Raises what `ask` raises."""
        return list(await asyncio.gather(*map(self._score, rows)))

    def findings(self, rows: Sequence[Row], scores: Sequence[float | None]) -> list[Finding | None]:
        """A finding for each row with a low score."""
        return [self._finding(row, score) for row, score in zip(rows, scores, strict=True)]

    async def _score(self, row: Row) -> float | None:
        if not self.chosen(row):
            return None
        answer = await self.ask(self.question(row))
        if isinstance(answer, Failure):
            return None
        return similarity(row.source, answer.value["texts"])

    def _finding(self, row: Row, score: float | None) -> Finding | None:
        if score is None or score >= self.doubt:
            return None
        detail = f"{score:.1f}: {row.source[-1].text}"
        if score < self.reject:
            return Reject(self.name, "comes back as something else", detail)
        return Doubt(self.name, "comes back in other words", detail)


def _as_long(line: Line, language: str) -> Line:
    length = len(line.text)
    return Line(line.role, "字" * -(-length // _LETTERS) if language == "zh" else "a" * (_LETTERS * length))


def similarity(source: Sequence[Line], back: Sequence[Any]) -> float:
    """chrF of all lines together, 0 to 100."""
    from sacrebleu import sentence_chrf  # noqa: PLC0415

    joined = "\n".join(line.text for line in source).casefold()
    return float(sentence_chrf("\n".join(map(str, back)).casefold(), [joined]).score)
