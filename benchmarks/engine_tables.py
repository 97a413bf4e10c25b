"""What measurements in alternation say, as Markdown tables."""

from __future__ import annotations

import os
from collections.abc import Sequence

from benchmarks import machine
from benchmarks.alternation import Turn, Turns

DISTURBED = 0.1  # of one processor, used by others during a round


def speed(turn: Turn) -> float:
    return turn.tokens_per_second


def first_token(turn: Turn) -> float:
    return turn.first_token


def speeds(turns: Turns, engines: Sequence[str], counts: Sequence[int]) -> str:
    """Medians of each engine at each number of requests."""
    head = ["medians", *(f"tokens/s, {n} at once" for n in counts), *(f"ms to first token, {n}" for n in counts)]
    rows = []
    for engine in engines:
        fast = [f"{turns.median(engine, n, speed):.0f}" for n in counts]
        first = [f"{1000 * turns.median(engine, n, first_token):.0f}" for n in counts]
        rows.append([engine, *fast, *first])
    return machine.table(head, rows)


def against_best(turns: Turns, one: str, peers: Sequence[str], counts: Sequence[int]) -> str:
    """`one` over the best peer at each number of requests: of the medians, and lowest and highest of the rounds."""
    rows = []
    for count in counts:
        fastest = max(peers, key=lambda peer: turns.median(peer, count, speed))
        soonest = min(peers, key=lambda peer: turns.median(peer, count, first_token))
        each = turns.ratios(one, fastest, count, speed)
        ratio = turns.median(one, count, speed) / turns.median(fastest, count, speed)
        wait = turns.median(one, count, first_token) / turns.median(soonest, count, first_token)
        spread = f"{min(each):.2f} to {max(each):.2f}"
        rows.append([f"{count} at once", fastest, f"{ratio:.2f}", spread, soonest, f"{wait:.2f}"])
    head = [f"{one} over the best peer", "fastest", "tokens/s", "of each round", "soonest", "time to first token"]
    return machine.table(head, rows)


def disturbance(turns: Turns) -> str:
    """One line that says how far to trust the tables."""
    worst, idlers = max(turn.others for turn in turns.all), max(turn.idlers for turn in turns.all)
    many = sum(turn.others > DISTURBED for turn in turns.all)
    return (
        f"Others used more than {DISTURBED:.0%} of a processor in {many} of {len(turns.all)} rounds ({worst:.0%} at "
        f"worst), engines whose turn it was not {idlers:.1%} at most; load {os.getloadavg()[0]:.2f} at the end."
    )
