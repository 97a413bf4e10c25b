"""Near duplicates, over all rows of a run and in both languages.

The rule: a row is rejected when there is an earlier kept row with a text of the same language in the same scope,
whose shingles have a Jaccard similarity of at least `SIMILARITY` with its own. The texts of a row are all its lines
of a language, joined. The scope of a short text is its picture: captions such as "A man rides a wave" are true of
many pictures. From `LONG` shingles on it is the whole run, for a long text that comes back was copied.

Which rows are compared at all is decided by MinHash bands (`shingles.py`): at a similarity of 0.8 a pair shares no
band in 0.2 % of cases, at 0.9 in one of 10 million. Of those that share one the sets themselves are compared, so
nothing is rejected by chance.

The same rows in the same order give the same verdicts. docs/data-gates.md has the memory that 1,000,000 rows need.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from training.gates.band_table import BandTable
from training.gates.gate import Finding, Reject
from training.gates.row import Row
from training.gates.shelf import Shelf, Text
from training.gates.shingles import band_hashes, jaccard, normalised, shingles

SIMILARITY = 0.8
LONG = {"en": 100, "zh": 40}


class Match(NamedTuple):
    """An earlier row that a row is a near duplicate of: how similar, and which of the kept ones, from 0."""

    similarity: float
    kept: int

    def reject(self, row: Row) -> Reject:
        kind = "the same text" if self.similarity == 1 else "a similar text"
        return Reject(NearDuplicates.name, kind, f"{self.similarity:.2f} to kept row {self.kept}: {_line(row)}")


class NearDuplicates:
    """A gate with a memory: `check` only looks, `keep` remembers a row that was accepted. One process, in row order.

    `match` and `remember` do the same for texts that were signed before (`signed`), by other processes too.

    With a `folder` the memory outlives the process: it then knows the first `rows` rows that were kept, and
    `truncate` takes it back to what the caller is sure of.
    """

    name = "near duplicate"

    def __init__(self, folder: Path | None = None, *, similarity: float = SIMILARITY) -> None:
        self.similarity = similarity
        self._temporary = tempfile.TemporaryDirectory() if folder is None else None
        self._shelf = Shelf(Path(self._temporary.name) if self._temporary else folder or Path())
        self._table = self._rebuilt()
        self._last: tuple[Row, list[Text]] | None = None

    @property
    def rows(self) -> int:
        """How many rows were kept."""
        return self._shelf.rows

    def check(self, row: Row) -> Finding | None:
        match = self.match(self._texts(row))
        return match and match.reject(row)

    def keep(self, row: Row) -> None:
        """Remembers the row: later ones are compared with it."""
        self.remember(self._texts(row))

    def match(self, texts: Sequence[Text]) -> Match | None:
        """The first earlier row that a row of these texts is a near duplicate of."""
        for own, bands in texts:
            for number in self._table.find(bands):
                similarity = jaccard(own, self._shelf.shingles(number))
                if similarity >= self.similarity:
                    return Match(similarity, self._shelf.row_of(number))
        return None

    def remember(self, texts: Sequence[Text]) -> None:
        """As `keep`."""
        kept = []
        for number, (own, bands) in enumerate(texts, self._shelf.texts):
            if self._table.full:
                self._table = self._rebuilt()
            kept.append((own, self._table.add(bands, number)))
        self._shelf.append(kept)

    def flush(self) -> None:
        """Returns when all that was kept is on the disk."""
        self._shelf.flush()

    def truncate(self, rows: int) -> None:
        """Forgets all but the first kept rows. Raises ValueError when there are fewer."""
        if rows > self.rows:
            raise ValueError(f"{self.rows} rows were kept, not {rows}")
        if rows < self.rows:
            self._shelf.truncate(rows)
            self._table = self._rebuilt()

    def close(self) -> None:
        self._shelf.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _texts(self, row: Row) -> list[Text]:
        """Shingles and bands by language. Kept for the call of `keep` that follows one of `check`."""
        if self._last is None or self._last[0] is not row:
            self._last = row, signed(row)
        return self._last[1]

    def _rebuilt(self) -> BandTable:
        """A table with room for as many texts again."""
        table = BandTable(max(1 << 12, 2 * self._shelf.texts))
        table.add_all(self._shelf.bands())
        return table


def signed(row: Row) -> list[Text]:
    """Shingles and bands of the row's texts, by language: all that the gate needs of it."""
    return [_signed(row, language) for language in sorted(row.texts)]


def _signed(row: Row, language: str) -> Text:
    text = normalised("".join(line.text for line in row.texts[language]))
    own = shingles(text)
    scope = f"{language}/{'' if len(own) >= LONG[language] else row.image_digest}"
    return own, band_hashes(own, int.from_bytes(hashlib.blake2b(scope.encode(), digest_size=8).digest(), "big"))


def _line(row: Row) -> str:
    return next((lines[-1].text for lines in row.texts.values() if lines), "")
