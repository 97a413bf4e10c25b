"""Many dialogues in one training row, all about the picture at its start.

A visual prefix is dear and an answer is short, so a row is one picture's visual tokens followed by several
dialogues that do not see one another: each sees the prefix and itself, at the positions it would have
alone. A dialogue without a picture does not see the prefix either. One row thus trains what the model
meets in serving, several times over. Legend: B rows, T positions of a row.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from training.tiny.dialogues import MAIN, Dialogue, Scene, draw_dialogue
from ziya.checkpoint import PromptTemplate
from ziya.prompt import render, tokenize

TEXT = -1
_PREFIX, _PADDING = 0, -(1 << 20)


@dataclass(frozen=True)
class Piece:
    """One dialogue as positions: token ids (0 at visual positions), which visual token, whether learnt."""

    ids: list[int]
    visual: list[int]
    learnt: list[bool]
    sees_prefix: bool


@dataclass(frozen=True)
class Rows:
    """`visual_BT` numbers a visual token of the row (main picture first) or is TEXT."""

    ids_BT: Tensor
    visual_BT: Tensor
    learnt_BT: Tensor
    position_BT: Tensor
    segment_BT: Tensor

    def attention(self, dtype: torch.dtype) -> Tensor:
        """Additive mask [B, 1, T, T]: causal, within a dialogue or from a dialogue to the prefix."""
        rows, columns = self.segment_BT[:, :, None], self.segment_BT[:, None, :]
        allowed = (rows == columns) | ((columns == _PREFIX) & (rows > _PREFIX))
        allowed &= torch.ones(allowed.shape[1:], dtype=torch.bool).tril()
        return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min).unsqueeze(1)


class Encoder:
    """Turns dialogues into pieces, through the same rendering and tokenising as serving."""

    def __init__(self, tokenizer: Tokenizer, template: PromptTemplate, queries: int) -> None:
        self.tokenizer, self.template, self.queries = tokenizer, template, queries
        self.bot, self.end = _token(tokenizer, "<bot>"), _token(tokenizer, "</s>")

    def prompt(self, dialogue: Dialogue) -> tuple[list[list[int]], tuple[int, ...]]:
        """Token ids of the text pieces and the images between them."""
        prompt = render(dialogue.turns, self.template)
        return tokenize(self.tokenizer, prompt.texts), prompt.images

    def piece(self, dialogue: Dialogue) -> Piece:
        """All positions of a dialogue except the row's own prefix, with every answer marked as learnt."""
        texts, images = self.prompt(dialogue)
        texts[-1] = texts[-1] + tokenize(self.tokenizer, [dialogue.answer + self.template.turn_end])[0]
        ids: list[int] = []
        visual: list[int] = []
        for number, text in enumerate(texts):
            if number > 0 and not self._is_prefix(number, images):
                first = images[number - 1] * self.queries
                ids += [0] * self.queries
                visual += range(first, first + self.queries)
            ids += text
            visual += [TEXT] * len(text)
        return Piece(ids, visual, self._answers(ids), sees_prefix=bool(images))

    @staticmethod
    def _is_prefix(number: int, images: tuple[int, ...]) -> bool:
        return number == 1 and images[0] == MAIN

    def _answers(self, ids: list[int]) -> list[bool]:
        """True from after `<bot>:` up to and with the end of the turn."""
        learnt, since_bot = [], -1
        for token in ids:
            learnt.append(since_bot >= 1)
            if token == self.bot:
                since_bot = 0
            elif since_bot >= 0:
                since_bot = -1 if token == self.end else since_bot + 1
        return learnt


def _token(tokenizer: Tokenizer, text: str) -> int:
    token = tokenizer.token_to_id(text)
    if token is None:
        raise ValueError(f"the tokenizer has no {text}")
    return token


def fill_row(scene: Scene, encoder: Encoder, length: int, draw: random.Random) -> list[Piece]:
    """Random dialogues until the next one would not fit."""
    pieces: list[Piece] = []
    room = length - encoder.queries
    while True:
        piece = encoder.piece(draw_dialogue(scene, draw))
        room -= len(piece.ids)
        if room < 0:
            return pieces
        pieces.append(piece)


def pack(rows: Sequence[Sequence[Piece]], queries: int, length: int) -> Rows:
    """Lay rows out in `length` positions each."""
    shape = (len(rows), length)
    ids, position = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    visual, segment = np.full(shape, TEXT, np.int64), np.full(shape, _PADDING, np.int64)
    learnt = np.zeros(shape, np.bool_)
    for row, pieces in enumerate(rows):
        visual[row, :queries] = position[row, :queries] = np.arange(queries)
        segment[row, :queries] = _PREFIX
        at = queries
        for number, piece in enumerate(pieces, start=1):
            place = slice(at, at + len(piece.ids))
            ids[row, place], visual[row, place], learnt[row, place] = piece.ids, piece.visual, piece.learnt
            position[row, place] = np.arange(len(piece.ids)) + (queries if piece.sees_prefix else 0)
            segment[row, place] = number if piece.sees_prefix else -number
            at = place.stop
    return Rows(*(_tensor(array) for array in (ids, visual, learnt, position, segment)))


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(array)
