"""Bradley-Terry: a number a model, so that the difference of two says how often one wins (Biometrika 39, 1952).

P(i beats j) = 1 / (1 + exp(b_j - b_i)). A tie is half a win to each side, as Chatbot Arena counts it; Davidson's model
with a parameter for ties would tell two models apart no better, and needs one more thing explained.

The likelihood has a maximum only if everybody has both won and lost something, through a chain of others, against
everybody else (Ford 1957). So each model also plays `PRIOR` of a game, half won, against a model of strength 0: one
that never lost gets a finite number, groups that never met get numbers at all, and others move by next to nothing.

M models. wins_MM[i, j]: games that i won against j, a tie a half.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
PRIOR = 0.1
STEPS, PRECISION = 200, 1e-10
ELO, MIDDLE = 400.0 / np.log(10.0), 1000.0


def fit(wins_MM: Array, prior: float = PRIOR, start_M: Array | None = None) -> Array:
    """Strengths (M), their mean 0. Newton's method. Raises ValueError when there is no prior, and no maximum."""
    if not prior and not _has_maximum(wins_MM):
        raise ValueError("the likelihood has no maximum: some models never lost to, or never met, the others")
    games_MM = wins_MM + wins_MM.T
    b_M = np.zeros(len(wins_MM)) if start_M is None else start_M.copy()
    for _ in range(STEPS):
        gradient_M, curvature_MM = _slopes(wins_MM, games_MM, b_M, prior)
        if np.abs(gradient_M).max() < PRECISION * (1.0 + games_MM.max()):
            return np.asarray(b_M - b_M.mean())
        step_M = np.linalg.lstsq(curvature_MM, gradient_M, rcond=None)[0]
        b_M = b_M + _scale(wins_MM, b_M, step_M, gradient_M, prior) * step_M
    raise ArithmeticError("the strengths were not found: the counts are not those of games")


def elo(b_M: Array) -> Array:
    """On chess's scale: 400 points are odds of ten to one; the mean is 1000."""
    return np.asarray(MIDDLE + ELO * b_M)


def chance(difference: float) -> float:
    """That the first wins, by the difference of two strengths; ties count half."""
    return float(_logistic(np.asarray(difference)))


def _has_maximum(wins_MM: Array) -> bool:
    """Ford's condition: from everyone to everyone leads a chain of wins."""
    reached_MM = np.eye(len(wins_MM)) + (wins_MM > 0)
    for _ in range(len(wins_MM).bit_length()):
        reached_MM = (reached_MM @ reached_MM > 0).astype(np.float64)
    return bool(reached_MM.all())


def _slopes(wins_MM: Array, games_MM: Array, b_M: Array, prior: float) -> tuple[Array, Array]:
    """The gradient of the log likelihood, and its second derivatives with the sign turned."""
    p_MM = _logistic(b_M[:, None] - b_M[None, :])
    p_M = _logistic(b_M)
    weight_MM = games_MM * p_MM * (1.0 - p_MM)
    gradient_M = (wins_MM - games_MM * p_MM).sum(1) + prior * (0.5 - p_M)
    curvature_MM = np.diag(weight_MM.sum(1) + prior * p_M * (1.0 - p_M)) - weight_MM
    return gradient_M, curvature_MM


def _likelihood(wins_MM: Array, b_M: Array, prior: float) -> float:
    softly_MM = np.logaddexp(0.0, b_M[None, :] - b_M[:, None])
    ghost = np.logaddexp(0.0, b_M) + np.logaddexp(0.0, -b_M)
    return float(-(wins_MM * softly_MM).sum() - 0.5 * prior * ghost.sum())


def _scale(wins_MM: Array, b_M: Array, step_M: Array, gradient_M: Array, prior: float) -> float:
    """Of the step, halved until it climbs (Armijo's rule)."""
    here, climb, scale = _likelihood(wins_MM, b_M, prior), float(gradient_M @ step_M), 1.0
    while scale > 1e-6 and _likelihood(wins_MM, b_M + scale * step_M, prior) < here + 1e-4 * scale * climb:
        scale /= 2.0
    return scale


def _logistic(x: Array) -> Array:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))
