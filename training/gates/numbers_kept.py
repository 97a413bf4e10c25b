"""Are the numbers of a text in its translation too, in whatever way they are written?

Every number is read to the set of values it may have (`english_numbers`, `chinese_numbers`). A number is kept when
one of its values is among those of the other side, digits, numerals and words alike. What is written in digits must
be kept. A number in words must not *change*: it is rejected when it is missing and the other side has a firm number
that the source has not; when it is only missing ("two-humped" may become a word for such a camel) that is a doubt.
Numbers that only the translation has are a doubt where they are written in digits. Of generated pairs, neither side
is the source, so each must keep the other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from training.gates.chinese_numbers import chinese_numbers
from training.gates.english_numbers import english_numbers
from training.gates.gate import Doubt, Finding, Reject, worst
from training.gates.row import Pair, Row
from training.gates.written_number import Number


@dataclass(frozen=True)
class NumbersKept:
    """Looks at every pair of lines on its own."""

    name: str = field(default="numbers", init=False)

    def check(self, row: Row) -> Finding | None:
        return worst(map(self._pair, row.pairs))

    def _pair(self, pair: Pair) -> Finding | None:
        english, chinese = english_numbers(pair.en), chinese_numbers(pair.zh)
        if pair.source == "zh":
            return self._one_way(chinese, english, pair)
        found = self._one_way(english, chinese, pair)
        if pair.source is None and not isinstance(found, Reject):
            back = self._one_way(chinese, english, pair)
            found = back if isinstance(back, Reject) else found or back
        return found

    def _one_way(self, source: Sequence[Number], target: Sequence[Number], pair: Pair) -> Finding | None:
        detail = f"{pair.en} / {pair.zh}"
        there, before = _values(target), _values(source)
        lost = [one for one in source if one.firm and not one.values & there]
        added = [one for one in target if one.firm and not one.values & before]
        if digits := [one.written for one in lost if one.digits]:
            return Reject(self.name, "a number in digits is missing", f"{digits[0]}: {detail}")
        if lost and added:
            return Reject(self.name, "a number has changed", f"{lost[0].written}, {added[0].written}: {detail}")
        if lost:
            return Doubt(self.name, "a number in words is missing", f"{lost[0].written}: {detail}")
        if digits := [one.written for one in added if one.digits]:
            return Doubt(self.name, "a number was added", f"{digits[0]}: {detail}")
        return None


def _values(numbers: Sequence[Number]) -> frozenset[Fraction]:
    return frozenset(value for one in numbers for value in one.values)
