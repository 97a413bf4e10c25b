"""Does the text belong to its picture? By our own ITC score: the cosine of a checkpoint's Q-Former (BLIP-2's way).

Captions and descriptions are looked at, in each language that the row will have; the worse of the two is the row's
score, for both must fit. Questions, answers and dialogues are no text that ITC has learnt, and rows without a picture
have nothing to agree with: both have no score. What a cosine means depends on the checkpoint, so the threshold is
given as a cosine, or found as a quantile of a sample of the scores (`threshold_of`).

Legend: B rows of a batch, Q queries, J joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.errors import BadConfig
from training.gates.gate import Finding, Reject
from training.gates.row import Row
from ziya.checkpoint import CheckpointError
from ziya.errors import InvalidImage
from ziya.images import ImageLimits, decode
from ziya.model.qformer import QFormer
from ziya.model.vision import VisionEncoder

# The Q-Former's captions are short; what comes after says little more of the picture.
MAX_TOKENS = 32
_ROLES = {"caption": "caption", "description": "answer"}


class Agreement:
    """Loads vision/ and qformer/ of a checkpoint folder. Raises BadConfig when it cannot score pairs.

    `at_least` is the least cosine of a row that is kept; None only measures. `languages`: of which texts.
    """

    name = "agreement"

    def __init__(
        self,
        checkpoint: Path,
        at_least: float | None = None,
        *,
        languages: Sequence[str] = ("en", "zh"),
        device: str = "cpu",
        batch: int = 32,
    ) -> None:
        try:
            self._qformer = QFormer.load(checkpoint, device=device)
            self._vision = VisionEncoder.load(checkpoint, device=device)
        except CheckpointError as error:
            raise BadConfig(f"the checkpoint cannot say whether texts and pictures agree: {error}") from error
        if not self._qformer.retrieval:
            raise BadConfig(f"{checkpoint}: this Q-Former has no retrieval heads, with which agreement is measured")
        self.at_least, self._languages, self._batch = at_least, tuple(languages), batch

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the weights that the scores depend on, by part."""
        return {"vision": self._vision.fingerprint, "qformer": self._qformer.fingerprint}

    def scores(self, rows: Sequence[Row]) -> list[float | None]:
        """The cosine of each row, and None for those without one. A picture that cannot be read scores -1."""
        scored: list[float | None] = []
        for start in range(0, len(rows), self._batch):
            scored += self._scores(rows[start : start + self._batch])
        return scored

    def findings(self, rows: Sequence[Row], scores: Sequence[float | None] | None = None) -> list[Finding | None]:
        """A reject for each row whose score is below `at_least`."""
        scores = self.scores(rows) if scores is None else scores
        return [self._finding(row, score) for row, score in zip(rows, scores, strict=True)]

    def _finding(self, row: Row, score: float | None) -> Finding | None:
        if score is None or self.at_least is None or score >= self.at_least:
            return None
        if score == -1.0:
            return Reject(self.name, "the picture cannot be read")
        text = " / ".join(_texts(row, self._languages))
        return Reject(self.name, "text and picture disagree", f"{score:.3f}: {text}")

    def _scores(self, rows: Sequence[Row]) -> list[float | None]:
        """Of one batch."""
        scores: list[float | None] = [None] * len(rows)
        pixels, seen, texts, owners = [], list[int](), list[str](), list[int]()
        for place, row in enumerate(rows):
            said = _texts(row, self._languages)
            if row.image is None or not said:
                continue
            try:
                pixels.append(self._vision.preprocessing(decode(row.image(), ImageLimits())))
            except InvalidImage:
                scores[place] = -1.0
                continue
            texts += said
            owners += [len(seen)] * len(said)
            seen.append(place)
        if seen:
            cosines = self._cosines(np.stack(pixels), texts, owners)
            for number, place in enumerate(seen):
                scores[place] = min(cosines[text] for text, owner in enumerate(owners) if owner == number)
        return scores

    def _cosines(self, pixels_B3SS: NDArray[np.float32], texts: Sequence[str], owners: Sequence[int]) -> list[float]:
        """One a text: the best of the picture's queries."""
        images_BQJ = self._qformer.embed_image(self._vision(pixels_B3SS))
        texts_TJ = self._qformer.embed_text([self._ids(text) for text in texts])
        cosines_TQ = np.einsum("tqj,tj->tq", images_BQJ[list(owners)], texts_TJ)
        return [round(float(cosine), 6) for cosine in cosines_TQ.max(axis=1)]

    def _ids(self, text: str) -> list[int]:
        return self._qformer.tokenize(text)[:MAX_TOKENS]


def threshold_of(scores: Sequence[float | None], quantile: float) -> float:
    """The score below which that share of the scored rows lies. Raises ValueError when none is scored."""
    known = [score for score in scores if score is not None]
    if not known or not 0 <= quantile <= 1:
        raise ValueError(f"no quantile {quantile} of {len(known)} scores")
    return float(np.quantile(known, quantile, method="lower"))


def _texts(row: Row, languages: Sequence[str]) -> list[str]:
    """The first caption or answer of each language."""
    role = _ROLES.get(row.task)
    by_language = [row.texts.get(language, ()) for language in languages]
    first = [list(islice((line.text for line in lines if line.role == role), 1)) for lines in by_language]
    return [text for some in first for text in some if text.strip()]
