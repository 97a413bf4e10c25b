"""A text as a set of shingles, and a set of shingles as a MinHash signature (Broder 1997).

A text is normalised first: NFKC, lower case, letters and digits alone. A *shingle* is three Han characters in a row,
or eight of any other letters: about a word and a half of either language. The chance that two signatures agree at a
place is the Jaccard similarity of the two sets; places are taken together in bands, so that similar sets meet in a
band and others hardly ever do (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, 3.4).

Legend: S shingles of a text, P places of a signature, B bands of P / B places each.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

import numpy as np
from numpy.typing import NDArray

BANDS, PLACES = 12, 48
HAN_RUN, LETTER_RUN = 3, 8
Hashes = NDArray[np.uint64]
_DROPPED = re.compile(r"[\W_]+")
_HAN = re.compile("[\u3400-\u9fff]")
_SEED = 20231012


def normalised(text: str) -> str:
    """Letters and digits alone, in lower case and of the usual width."""
    return _DROPPED.sub("", unicodedata.normalize("NFKC", text).casefold())


def shingles(text: str) -> NDArray[np.uint32]:
    """The set of a normalised text's shingles as sorted hashes [S]; a text shorter than one is a shingle itself."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    run = HAN_RUN if 2 * len(_HAN.findall(text)) > len(text) else LETTER_RUN
    run = max(1, min(run, len(codes)))
    hashes = np.zeros(max(0, len(codes) - run + 1), np.uint64)
    for place, factor in enumerate(_powers()[:run]):
        hashes += codes[place : len(codes) - run + 1 + place] * factor
    every: NDArray[np.uint32] = np.unique(_mixed(hashes) >> np.uint64(32)).astype(np.uint32)
    return every


def band_hashes(shingles_S: NDArray[np.uint32], scope: int) -> Hashes:
    """[B]: two sets meet in a band when the smallest hashes of all places in it are equal, and their scopes are.

    A text without shingles has no bands: all are 0.
    """
    if not len(shingles_S):
        return np.zeros(BANDS, np.uint64)
    factors_P, offsets_P = _permutations()
    # Of each product only the upper half is used: multiply-shift hashing.
    places_P = ((shingles_S[None, :] * factors_P[:, None] + offsets_P[:, None]) >> np.uint64(32)).min(axis=1)
    rows_BR = places_P.reshape(BANDS, -1)
    bands_B = (rows_BR * factors_P[: rows_BR.shape[1]]).sum(axis=1, dtype=np.uint64)
    return _mixed(bands_B + (np.arange(BANDS, dtype=np.uint64) ^ np.uint64(scope)))


def jaccard(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> float:
    """Shared shingles of all shingles of two sorted sets."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def _mixed(hashes: Hashes) -> Hashes:
    """The finaliser of SplitMix64: every bit of the input moves every bit of the output."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = hashes ^ (hashes >> np.uint64(31))
    return mixed


@cache
def _powers() -> Hashes:
    """Factors of the polynomial that a shingle's characters are hashed with, modulo 2^64."""
    powers = [pow(0x9E3779B97F4A7C15, place, 1 << 64) for place in range(max(HAN_RUN, LETTER_RUN))]
    return np.array(powers, np.uint64)


@cache
def _permutations() -> tuple[Hashes, Hashes]:
    """Odd factors and offsets [P]. From `random_raw`, the same in every version of numpy."""
    drawn = np.random.PCG64(_SEED).random_raw(2 * PLACES)
    return drawn[:PLACES] | np.uint64(1), drawn[PLACES:]
