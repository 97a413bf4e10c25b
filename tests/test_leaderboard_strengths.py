"""Bradley-Terry against what is known without it: closed forms, strengths that games were drawn from, extremes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.leaderboard.board import board
from training.leaderboard.judge import Bias, Pair
from training.leaderboard.strengths import ELO, chance, elo, fit

WON, LOST, TIED = ("A", "B"), ("B", "A"), ("tie", "tie")


def matrix(size: int, **games: float) -> np.ndarray:
    """`w01=3`: model 0 won 3 games against model 1."""
    wins = np.zeros((size, size))
    for name, count in games.items():
        wins[int(name[1]), int(name[2])] = count
    return wins


def pairs_of(one: str, two: str, orders: tuple, count: int, first: int = 0) -> list[Pair]:
    return [Pair(f"q{first + number}", one, two, orders) for number in range(count)]


@pytest.mark.parametrize(("won", "lost"), [(3, 1), (7, 7), (99, 1), (2.5, 0.5)])
def test_two_models_have_the_log_of_their_odds(won: float, lost: float) -> None:
    found = fit(matrix(2, w01=won, w10=lost), prior=0.0)
    assert found[0] - found[1] == pytest.approx(math.log(won / lost), abs=1e-8)
    assert chance(found[0] - found[1]) == pytest.approx(won / (won + lost))


def test_three_models_by_hand() -> None:
    """Odds of 2, 2 and 4, as they are seen: the likelihood is greatest where each pair has exactly its own odds."""
    found = fit(matrix(3, w01=2, w10=1, w12=2, w21=1, w02=4, w20=1), prior=0.0)
    assert found == pytest.approx([math.log(2), 0.0, -math.log(2)], abs=1e-8)


def test_at_the_maximum_each_has_won_as_often_as_is_expected() -> None:
    """The likelihood's own equations, which no closed form solves for four models at odds with one another."""
    wins = np.random.default_rng(5).integers(1, 20, (4, 4)).astype(float)
    np.fill_diagonal(wins, 0.0)
    found = fit(wins, prior=0.0)
    expected = [sum((wins[i, j] + wins[j, i]) * chance(found[i] - found[j]) for j in range(4)) for i in range(4)]
    assert expected == pytest.approx(list(wins.sum(1)), abs=1e-6)
    assert found.mean() == pytest.approx(0.0, abs=1e-12)


def test_strengths_are_recovered_from_games() -> None:
    chances = np.random.default_rng(1)
    true = np.array([1.2, 0.5, 0.1, -0.4, -1.4])
    wins = np.zeros((5, 5))
    for i in range(5):
        for j in range(i):
            wins[i, j] = chances.binomial(4000, chance(true[i] - true[j]))
            wins[j, i] = 4000 - wins[i, j]
    assert fit(wins) == pytest.approx(true, abs=0.08)


def test_the_prior_moves_a_measured_strength_by_next_to_nothing() -> None:
    wins = matrix(2, w01=60, w10=40)
    assert np.abs(elo(fit(wins)) - elo(fit(wins, prior=0.0))).max() < 0.2


def test_a_model_that_never_lost_has_a_number_and_no_maximum() -> None:
    wins = matrix(3, w01=10, w12=5, w21=5)
    found = fit(wins)
    assert found[1] == pytest.approx(found[2], abs=0.05)
    assert 4 < found[0] - found[1] < 10
    with pytest.raises(ValueError, match="no maximum"):
        fit(wins, prior=0.0)


def test_four_hundred_points_are_odds_of_ten() -> None:
    assert chance(400 / ELO) == pytest.approx(10 / 11)
    assert list(elo(np.zeros(3))) == [1000.0] * 3


def test_a_verdict_that_changes_with_the_order_is_a_tie() -> None:
    orders = [(one, two) for one in ("A", "B", "tie") for two in ("A", "B", "tie")]
    won = {each: Pair("q", "x", "y", each).won for each in orders}
    assert won == dict.fromkeys(orders, 0.5) | {("A", "B"): 1.0, ("B", "A"): 0.0}
    assert Bias.of([Pair("q", "x", "y", each) for each in orders]) == Bias(9, 3, 1, 1, 4)
    assert Bias.of([Pair("q", "x", "y", settled=1.0)]).pairs == 0


def test_the_board_by_hand() -> None:
    pairs = pairs_of("x", "y", WON, 6) + pairs_of("x", "y", LOST, 2, 6) + pairs_of("x", "y", TIED, 2, 8)
    found = board(["y", "x"], pairs)
    best, other = found.rows
    assert (best.name, best.wins, best.ties, best.losses, best.note) == ("x", 6, 2, 2, "")
    assert (other.name, other.wins, other.ties, other.losses) == ("y", 2, 2, 6)
    assert best.score - other.score == pytest.approx(400 * math.log10(7 / 3), rel=0.02)
    assert found.won == {"x": {"y": pytest.approx(0.7)}, "y": {"x": pytest.approx(0.3)}}
    assert found.questions == 10
    assert board(["y", "x"], pairs) == found, "the same draws tomorrow"


def test_the_interval_is_as_wide_as_theory_says() -> None:
    """Of a log of odds: 1 / sqrt(n p (1 - p)), 1.96 times to each side; a model has half of the difference."""
    pairs = pairs_of("x", "y", WON, 280) + pairs_of("x", "y", LOST, 120, 280)
    best = board(["x", "y"], pairs).rows[0]
    half = 1.96 / math.sqrt(400 * 0.7 * 0.3) * ELO / 2
    assert (best.high - best.low) / 2 == pytest.approx(half, rel=0.15)
    assert best.low < best.score < best.high


def test_the_bootstrap_draws_questions_and_not_verdicts() -> None:
    """The same verdict forty times on each of ten questions is worth ten, not four hundred."""
    names = [f"m{number}" for number in range(10)]
    many = [
        Pair(f"q{question}", one, two, WON if (question < 7) == (one < two) else LOST)
        for question in range(10)
        for one in names
        for two in names
        if one < two
    ]
    few = board(["x", "y"], pairs_of("x", "y", WON, 7) + pairs_of("x", "y", LOST, 3, 7)).rows[0]
    row = next(row for row in board(names, many).rows if row.name == "m0")
    assert row.high - row.low > (few.high - few.low) / 2


def test_models_that_cannot_be_told_apart_share_a_rank() -> None:
    pairs = pairs_of("x", "y", WON, 11) + pairs_of("x", "y", LOST, 9, 11)
    pairs += pairs_of("x", "z", WON, 19) + pairs_of("x", "z", LOST, 1, 19)
    pairs += pairs_of("y", "z", WON, 18) + pairs_of("y", "z", LOST, 2, 18)
    assert {row.name: row.rank for row in board(["x", "y", "z"], pairs).rows} == {"x": 1, "y": 1, "z": 3}


def test_what_the_verdicts_cannot_say_is_said() -> None:
    pairs = pairs_of("a", "b", WON, 3) + pairs_of("c", "d", WON, 3) + pairs_of("c", "d", LOST, 3, 3)
    found = board(["a", "b", "c", "d", "e"], pairs)
    notes = {row.name: row.note for row in found.rows}
    assert notes["a"].startswith("never lost")
    assert notes["b"].startswith("never won")
    assert (notes["c"], notes["d"]) == ("", "")
    assert notes["e"].startswith("never compared")
    assert found.groups == (("a", "b"), ("c", "d"), ("e",))
    assert found.won["a"]["c"] is None
    assert all(math.isfinite(row.score) for row in found.rows)


def test_two_that_beat_all_others_are_known_to_be_apart_only_from_one_another() -> None:
    pairs = pairs_of("a", "b", WON, 3) + pairs_of("a", "b", LOST, 3, 3)
    pairs += pairs_of("a", "c", WON, 3) + pairs_of("c", "d", WON, 2) + pairs_of("c", "d", LOST, 2, 2)
    notes = {row.name: row.note for row in board(["a", "b", "c", "d"], pairs).rows}
    assert notes["a"] == "its distance to c, d is the prior's"
    assert notes["c"] == "its distance to a, b is the prior's"
