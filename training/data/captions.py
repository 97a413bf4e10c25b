"""Texts as the Q-Former reads them: captions to learn from, and instructions exactly as in serving.

A caption that is too long loses its end (as in LAVIS), an instruction its beginning, for the question stands last.
Both keep the tokenizer's special tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from training.data.batch import Captions
from ziya.instruction import instruction_ids


class Captioner:
    """`tokenizer` is the Q-Former's, as `load_instruction_tokenizer` gives it. Captions have at most `max_tokens`."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._instructions = tokenizer
        # A copy, because how a tokenizer truncates is part of its state.
        self._captions: Tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._captions.no_padding()
        self._captions.enable_truncation(max_tokens, direction="right")
        self._pad: int = tokenizer.token_to_id("[PAD]") or 0

    def batch(self, texts: Sequence[str]) -> Captions:
        """Captions. The place of a bad sample may be an empty text."""
        return self._padded([list(encoding.ids) for encoding in self._captions.encode_batch(list(texts))])

    def instructions(self, texts: Sequence[str]) -> Captions:
        """Instructions, one an image."""
        return self._padded([instruction_ids(self._instructions, text) for text in texts])

    def _padded(self, rows: list[list[int]]) -> Captions:
        """Right-padded. A text of no token becomes one padding token that is seen, for an empty row has no softmax."""
        rows = [row or [self._pad] for row in rows]
        shape = (len(rows), max(map(len, rows), default=0))
        ids_BT = torch.full(shape, self._pad, dtype=torch.long)
        mask_BT = torch.zeros(shape, dtype=torch.long)
        for number, row in enumerate(rows):
            ids_BT[number, : len(row)] = torch.tensor(row)
            mask_BT[number, : len(row)] = 1
        return Captions(ids_BT, mask_BT)
