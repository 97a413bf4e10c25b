"""A frame as a person reads it, as wide as the terminal allows: what is less needed gives way first."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.top.frame import Frame, Row, Spread, Traffic

# Columns of the table, most needed first; the number is the terminal's width from which each has room.
COLUMNS: tuple[tuple[str, int, Callable[[Row], str]], ...] = (
    ("up", 0, lambda row: f"{row.up}/{row.known}"),
    ("per s", 0, lambda row: f"{_number(row.rate)} {row.unit}" if row.up else "down"),
    ("queued", 40, lambda row: _number(row.queued)),
    ("waited", 56, lambda row: _spread(row.queue)),
    ("took", 72, lambda row: _spread(row.work)),
    ("batch", 80, lambda row: "-" if row.batch is None else f"{row.batch:.1f}"),
    ("cache", 88, lambda row: _percent(row.cache)),
    ("shed", 96, lambda row: _number(row.shed)),
    ("saved", 104, lambda row: _number(row.saved)),
)


def picture(frame: Frame, *, width: int, title: str) -> RenderableType:
    """The whole frame for a terminal of so many columns."""
    parts: list[RenderableType] = [Text(title, style="bold", overflow="ellipsis", no_wrap=True)]
    if frame.traffic is not None:
        parts += [_line(words, width) for words in _traffic(frame.traffic)]
    parts += [Text(), _table(frame, width), Text()]
    parts += [_line(words, width) for words in _below(frame)]
    parts += [Text(f"no answer from {url}", style="red") for url in frame.strangers]
    return Group(*parts)


def _traffic(traffic: Traffic) -> list[list[str]]:
    return [
        [
            f"requests {_number(traffic.requests)}/s:",
            f"answered {_number(traffic.answered)}",
            f"refused {_number(traffic.refused)}",
            f"failed {_number(traffic.failed)}",
            f"left {_number(traffic.left)}",
            f"in flight {_number(traffic.in_flight)}",
            f"waiting {_number(traffic.waiting)}",
        ],
        [
            f"first text {_spread(traffic.first_text)}",
            f"between tokens {_spread(traffic.between_tokens)}",
            f"answer {_spread(traffic.whole_answer)}",
            f"tokens {_number(traffic.tokens)}/s",
            f"images {_number(traffic.images)}/s",
            f"cached {_percent(traffic.image_cache)}",
        ],
    ]


def _below(frame: Frame) -> list[list[str]]:
    lines = []
    if frame.engine is not None:
        engine = frame.engine
        lines.append(
            [
                f"engine running {_number(engine.running)}/{_number(engine.slots)}",
                f"KV {_percent(engine.kv_use)}",
                f"waiting for images {_number(engine.waiting_for_images)}",
                f"preempted {_number(engine.preempted)}/s",
            ]
        )
    bus = []
    if frame.bus_backlog is not None:
        bus += [f"backlog {_number(frame.bus_backlog)}", f"lag {_spread(frame.bus_lag)}"]
    if frame.traffic is not None:
        bus.insert(0, "in use" if frame.traffic.bus else "DOWN, tensors go inline")
        bus += [f"fallback {_number(frame.traffic.fallback)}/s", f"retried {_number(frame.traffic.retried)}/s"]
    if bus:
        lines.append([f"bus {bus[0]}", *bus[1:]])
    return lines


def _table(frame: Frame, width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    chosen = [(name, cell) for name, least, cell in COLUMNS if width >= least]
    table.add_column("stage", no_wrap=True)
    for name, _ in chosen:
        table.add_column(name, no_wrap=True, justify="right")
    for row in frame.rows:
        style = "" if row.up == row.known else "bold red"
        table.add_row(row.stage, *(cell(row) for _, cell in chosen), style=style)
    return table


def _line(words: list[str], width: int) -> Text:
    """Words that stay whole where a narrow terminal breaks the line."""
    lines = [""]
    for word in words:
        joined = f"{lines[-1]}  {word}" if lines[-1] else word
        lines[-1:] = [joined] if len(joined) <= width or not lines[-1] else [lines[-1], f"  {word}"]
    return Text("\n".join(lines))


def _spread(spread: Spread) -> str:
    if spread.p50 is None or spread.p95 is None:
        return "-"
    return f"{_time(spread.p50)} / {_time(spread.p95)}"


def _time(seconds: float) -> str:
    if seconds < 0.0995:
        return f"{seconds * 1000:.1f}ms"
    return f"{seconds * 1000:.0f}ms" if seconds < 0.9995 else f"{seconds:.1f}s"


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{part * 100:.0f}%"


def _number(value: float) -> str:
    if value == int(value) or value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"
