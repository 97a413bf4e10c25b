"""The rows of one piece of a build: read one after another, what cannot be used counted and named.

Pieces are runs of rows, so that the pieces one after another are the whole in its order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from training.build.layouts.layout import Layout, SourceRow
from training.build.layouts.recognise import open_layout
from training.build.options import BuildOptions
from training.data.report import BadSamples
from training.errors import BadConfig, BadData, BadSample

_PROBED = 20


@dataclass(frozen=True)
class Rows:
    """Numbers `first` to `end` of a layout. `licence` is that of rows which bring none."""

    layout: Layout
    first: int
    end: int
    licence: str | None

    def __len__(self) -> int:
        return self.end - self.first

    def read(self, bad: BadSamples, step: Callable[[], None] = lambda: None) -> Iterator[SourceRow]:
        """The good ones in order; `bad` hears of the others, `step` of each."""
        for number in range(self.first, self.end):
            try:
                row = self.layout.read(number)
                if row.licence is None and self.licence is None:
                    raise BadSample(row.key, "missing licence: the row brings none, and none was given for the others")
            except BadSample as error:
                bad.add(1, [(error.key, error.reason)])
            else:
                bad.add(1, [(row.key, reason) for reason in row.lacking])
                yield row if row.licence else replace(row, licence=self.licence)
            step()


def open_rows(options: BuildOptions, piece: int = 0, pieces: int = 1) -> Rows:
    """Raises BadData, and BadConfig when nobody says under which licence the rows may be used."""
    layout = open_layout(options.input, options.language, kind=options.layout, images=options.images)
    if options.expect is not None and layout.digest != options.expect:
        raise BadData(f"{options.input} is not what it was: its digest is {layout.digest}, not {options.expect}")
    if options.licence is None and not _brings_licences(layout):
        raise BadConfig(
            f"{options.input}: its rows do not say under which licence they may be used. Give that of the source "
            '(licence: CC-BY-4.0), or "unknown" if you do not know it: the manifest then says so'
        )
    count = min(layout.count, options.limit or layout.count)
    return Rows(layout, piece * count // pieces, (piece + 1) * count // pieces, options.licence)


def _brings_licences(layout: Layout) -> bool:
    """Whether any of the first rows does; a row without one is named later."""
    for number in range(min(_PROBED, layout.count)):
        try:
            if layout.read(number).licence:
                return True
        except BadSample:
            continue
    return False
