"""Bars, tables and histograms of the report page, as HTML and inline SVG. Every text is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from training.gates.histogram import Histogram
from training.gates.page_words import both

_WIDTH, _HEIGHT, _FOOT = 360, 130, 18
_SHORT = 20


def bars(counts: Mapping[str, Mapping[str, int]], rows: int, *, kind: str = "") -> str:
    """One bar a kind, under its gate; the longest is as long as there is room."""
    longest = max((count for kinds in counts.values() for count in kinds.values()), default=1)
    parts = [f'<div class="bars {escape(kind)}">']
    for gate, kinds in sorted(counts.items(), key=lambda one: -sum(one[1].values())):
        parts.append(f'<div class="gate">{both(gate)}</div>')
        for name, count in sorted(kinds.items(), key=lambda one: (-one[1], one[0])):
            width = f"{100 * count / longest:.2f}%"
            parts.append(
                f'<div class="bar"><div class="kind">{both(name)}</div>'
                f'<div class="track"><i style="width:{width}"></i></div>'
                f'<div class="count">{count:,} <span class="soft">{share(count, rows)}</span></div></div>'
            )
    return "".join([*parts, "</div>"])


def share(part: int, whole: int) -> str:
    """A percentage with as many places as it needs to be told from 0."""
    if not whole:
        return "0 %"
    percent = 100 * part / whole
    return f"{percent:.1f} %" if percent >= 1 else f"{percent:.2g} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str | int]]) -> str:
    """`head` in our words; whole numbers and shares stand right, other texts are HTML."""
    numeric = [all(_is_number(row[place]) for row in rows) for place in range(len(head))]
    marks = [' class="number"' if number else "" for number in numeric]
    cells = "".join(f"<th{mark}>{both(name)}</th>" for name, mark in zip(head, marks, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{mark}>{_cell(one)}</td>" for one, mark in zip(row, marks, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide card"><table><tr>{cells}</tr>{body}</table></div>'


def tree(values: Mapping[str, Any]) -> str:
    """Keys and values of a JSON object; objects in it are folded, long lists shortened."""
    rows = "".join(
        f'<tr><td class="key">{both(str(key))}</td><td>{_value(value)}</td></tr>' for key, value in values.items()
    )
    return f'<div class="wide card"><table>{rows}</table></div>'


def histogram(name: str, held: Histogram) -> str:
    """A figure: one bar a bin, the borders below, counts as tooltips."""
    edges = held.edges
    labels = [f"< {edges[0]:g}", *(f"{low:g} – {high:g}" for low, high in pairwise(edges))]
    labels.append(f"≥ {edges[-1]:g}")
    first, last = _filled(held.counts)
    counts, labels = held.counts[first : last + 1], labels[first : last + 1]
    step, highest = _WIDTH / len(counts), max(counts)
    drawn = "".join(
        f'<rect x="{number * step + 1:.1f}" y="{_HEIGHT - _HEIGHT * count / highest:.1f}" '
        f'width="{max(1, step - 2):.1f}" height="{_HEIGHT * count / highest:.1f}">'
        f"<title>{escape(label)}: {count:,}</title></rect>"
        for number, (count, label) in enumerate(zip(counts, labels, strict=True))
    )
    every = max(1, -(-len(counts) // 6))
    ticks = "".join(
        f'<text x="{number * step + 1:.1f}" y="{_HEIGHT + _FOOT - 4}">{edges[first + number - 1]:g}</text>'
        for number in range(0 if first else 1, len(counts), every)
    )
    said = f"{both('mean')} {held.mean:.3g} · {both('values')} {held.count:,}"
    return (
        f'<figure class="card"><h3>{both(name)}</h3><svg viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT}" role="img" '
        f'aria-label="{escape(name)}">{drawn}<line x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>{ticks}</svg>'
        f"<figcaption>{said}</figcaption></figure>"
    )


def _filled(counts: Sequence[int]) -> tuple[int, int]:
    """The first and the last bin with something in it."""
    filled = [place for place, count in enumerate(counts) if count]
    return filled[0], filled[-1]


def _is_number(cell: str | int) -> bool:
    return isinstance(cell, int) or cell.endswith("%")


def _cell(value: str | int) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"<details><summary>{len(value)}</summary>{tree(value)}</details>" if value else "–"
    if isinstance(value, list | tuple):
        shown = "<br>".join(_value(one) for one in value[:_SHORT])
        return shown + (f"<br>… {len(value) - _SHORT:,}" if len(value) > _SHORT else "")
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"<code>{escape(str(value))}</code>"
