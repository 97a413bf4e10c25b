"""The board: strengths with bootstrap intervals, who beat whom how often, and what to be wary of.

The bootstrap draws questions, not verdicts: verdicts on one question hang together (Efron 1979; for leaderboards of
this kind, Chatbot Arena, arXiv 2403.04132). Intervals are percentiles.

M models, Q questions, B draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.leaderboard.judge import Bias, Pair
from training.leaderboard.strengths import Array, elo, fit

DRAWS, CONFIDENCE = 1000, 0.95


@dataclass(frozen=True)
class Row:
    """A model. `score` is Elo, `low` to `high` its interval; `rank` is one more than those surely above it.

    `note`: why the score is not to be taken at its word.
    """

    name: str
    rank: int
    score: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    note: str = ""

    @property
    def games(self) -> int:
        return self.wins + self.ties + self.losses


@dataclass(frozen=True)
class Board:
    """`rows` best first. `won[a][b]` is the share that a won of its games against b, ties half; None: they never met.

    `groups` are models that met one another at least through others; scores of different groups say nothing.
    """

    rows: tuple[Row, ...]
    won: dict[str, dict[str, float | None]]
    groups: tuple[tuple[str, ...], ...]
    bias: Bias
    questions: int


def board(names: Sequence[str], pairs: Sequence[Pair], draws: int = DRAWS, seed: int = 0) -> Board:
    """Of all verdicts. The same pairs give the same board."""
    wins_QMM = _by_question(names, pairs)
    wins_MM = wins_QMM.sum(0)
    b_M = fit(wins_MM)
    low_M, high_M = _intervals(wins_QMM, b_M, draws, seed)
    score_M = elo(b_M)
    rows = []
    for place, name in enumerate(names):
        mine = [pair.won if pair.one == name else 1.0 - pair.won for pair in pairs if name in {pair.one, pair.two}]
        counted = (mine.count(1.0), mine.count(0.5), mine.count(0.0))
        rank = 1 + int((low_M > high_M[place]).sum())
        span = float(score_M[place]), float(low_M[place]), float(high_M[place])
        rows.append(Row(name, rank, *span, *counted, _note(names, wins_MM, place)))
    rows.sort(key=lambda row: (-row.score, row.name))
    return Board(tuple(rows), _shares(names, wins_MM), _groups(names, wins_MM), Bias.of(list(pairs)), len(wins_QMM))


def _by_question(names: Sequence[str], pairs: Sequence[Pair]) -> Array:
    place = {name: index for index, name in enumerate(names)}
    line = {key: index for index, key in enumerate(sorted({pair.key for pair in pairs}))}
    wins_QMM = np.zeros((len(line), len(names), len(names)))
    for pair in pairs:
        one, two = place[pair.one], place[pair.two]
        wins_QMM[line[pair.key], one, two] += pair.won
        wins_QMM[line[pair.key], two, one] += 1.0 - pair.won
    return wins_QMM


def _intervals(wins_QMM: Array, b_M: Array, draws: int, seed: int) -> tuple[Array, Array]:
    questions, models = wins_QMM.shape[:2]
    if not questions or not draws:
        return elo(b_M), elo(b_M)
    chance = np.random.default_rng(seed)
    flat = wins_QMM.reshape(questions, -1)
    drawn_BM = np.empty((draws, models))
    for draw in range(draws):
        times_Q = chance.multinomial(questions, np.full(questions, 1.0 / questions)).astype(np.float64)
        drawn_BM[draw] = fit((times_Q @ flat).reshape(models, models), start_M=b_M)
    edges = np.quantile(drawn_BM, [(1.0 - CONFIDENCE) / 2.0, (1.0 + CONFIDENCE) / 2.0], axis=0)
    return elo(edges[0]), elo(edges[1])


def _note(names: Sequence[str], wins_MM: Array, place: int) -> str:
    """Whether the verdicts say how far the model is from those it is connected with (Ford's condition)."""
    met, below, above = (
        set(_reached(edges_MM, place)) for edges_MM in (wins_MM + wins_MM.T > 0, wins_MM > 0, wins_MM.T > 0)
    )
    if met == {place}:
        return "never compared: its score is the prior's"
    if not wins_MM[:, place].any():
        return "never lost: its score has no upper end but the prior's"
    if not wins_MM[place].any():
        return "never won: its score has no lower end but the prior's"
    far = sorted(names[index] for index in met - (below & above))
    return f"its distance to {', '.join(far)} is the prior's" if far else ""


def _shares(names: Sequence[str], wins_MM: Array) -> dict[str, dict[str, float | None]]:
    games_MM = wins_MM + wins_MM.T
    return {
        one: {
            two: float(wins_MM[i, j] / games_MM[i, j]) if games_MM[i, j] else None
            for j, two in enumerate(names)
            if i != j
        }
        for i, one in enumerate(names)
    }


def _groups(names: Sequence[str], wins_MM: Array) -> tuple[tuple[str, ...], ...]:
    met_MM = (wins_MM + wins_MM.T) > 0
    left, groups = set(range(len(names))), []
    while left:
        group = set(_reached(met_MM, min(left)))
        groups.append(tuple(names[index] for index in sorted(group)))
        left -= group
    return tuple(groups)


def _reached(met_MM: NDArray[np.bool_], start: int) -> Iterator[int]:
    seen, todo = {start}, [start]
    while todo:
        here = todo.pop()
        yield here
        new = {int(index) for index in np.flatnonzero(met_MM[here])} - seen
        seen |= new
        todo += new
