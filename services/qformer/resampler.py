"""ViT features in, visual tokens out, and for retrieval embeddings and match scores: numpy on the caller's thread.

A batch may hold questions of several kinds; each kind is run as one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from services.qformer.questions import Array, EmbedImage, EmbedText, Ids, Match, Query, Question
from ziya.model.qformer import QFormer
from ziya.model.slices import Slices


class Resampler:
    """The Q-Former of one checkpoint."""

    def __init__(self, model: QFormer, slices: Slices) -> None:
        self._model = model
        self._slices = slices

    @classmethod
    def load(cls, folder: Path, *, threads: int, dtype: str, device: str) -> Self:
        """Loads the weights of the checkpoint in `folder`. Raises CheckpointError naming what is wrong with it."""
        slices = Slices(threads, device)
        return cls(QFormer.load(folder, dtype=getattr(torch, dtype), device=device), slices)

    def blank(self) -> Query:
        """A question about an empty picture, to warm the model up with."""
        features = np.zeros((2, self._model.config.vision_width), np.float16)
        return Query(features, tuple(self._model.tokenize("?")) if self._model.reads_instruction else None)

    def text_ids(self, text: str) -> Ids:
        """Token ids of a caption. Raises ValueError when the checkpoint has no text branch."""
        return tuple(self._model.tokenize(text))

    def answer(self, questions: Sequence[Question]) -> list[Array]:
        """One array a question, in order."""
        groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for number, question in enumerate(questions):
            groups[_kind(question)].append(number)
        answers: dict[int, Array] = {}
        for numbers in groups.values():
            answers |= zip(numbers, self._run([questions[n] for n in numbers]), strict=True)
        return [answers[number] for number in range(len(questions))]

    def _run(self, questions: list[Any]) -> Sequence[Array]:
        """Questions of one kind and one shape."""
        match questions[0]:
            case Query(ids=None):
                return self._slices.run(self._model, _stack(questions))
            case Query():
                return self._slices.run(self._model, _stack(questions), [q.ids for q in questions])
            case EmbedImage():
                return self._slices.run(self._model.embed_image, _stack(questions))
            case EmbedText():
                return list(self._model.embed_text([q.ids for q in questions])[:, None])
            case _:
                return self._match(questions)

    def _match(self, questions: list[Match]) -> Sequence[Array]:
        features_BNV, ids = _stack(questions), [q.ids for q in questions]
        logits_B2 = self._model.match(features_BNV, ids)
        probability_B = 1 / (1 + np.exp(logits_B2[:, 0] - logits_B2[:, 1]))
        images_BQJ, texts_BJ = self._model.embed_image(features_BNV), self._model.embed_text(ids)
        cosine_B = np.einsum("bqj,bj->bq", images_BQJ, texts_BJ).max(axis=1)
        return list(np.stack([probability_B, cosine_B], axis=1).astype(np.float32))


def _kind(question: Question) -> tuple[object, ...]:
    features = getattr(question, "features", None)
    return type(question), None if features is None else features.shape


def _stack(questions: Sequence[Query | EmbedImage | Match]) -> Array:
    return np.stack([question.features for question in questions])
