"""Questions of a wanted number of tokens, no two alike, made of a checkpoint's own words."""

from __future__ import annotations

import random
import re
from pathlib import Path

from tokenizers import Tokenizer

from ziya.checkpoint import read_config
from ziya.prompt import Turn, render, tokenize

WORD = re.compile("Ġ[a-z]{3,}")  # byte-level BPE writes a space that way


class Questions:
    """For the tokenizer and the template of `checkpoint`, whose tokens must be of the byte-level kind."""

    def __init__(self, checkpoint: Path) -> None:
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(checkpoint / "llama" / "tokenizer.json"))
        self._template = read_config(checkpoint).prompt
        words = (word for word in self._tokenizer.get_vocab() if WORD.fullmatch(word))
        self._words = sorted(word.replace("Ġ", " ") for word in words)
        self._around = self.length("")

    def ask(self, number: int, tokens: int) -> str:
        """The question of this number: with the template it is `tokens` long."""
        draw = random.Random(number)
        text, missing = "", tokens - self._around
        while missing:
            longer = text + "".join(draw.choices(self._words, k=missing))
            left = tokens - self.length(longer)
            if left >= 0:  # a word may be read as several tokens: then others are drawn
                text, missing = longer, left
        return text

    def words(self, count: int) -> list[int]:
        """Ids of the first so many words that are one token each, whatever stands before them."""
        return [ids[0] for word in self._words if len(ids := self._tokenizer.encode(word).ids) == 1][:count]

    def length(self, question: str) -> int:
        """Tokens of the prompt that holds this question and nothing else."""
        turn: Turn[None] = Turn("user", question)
        return sum(map(len, tokenize(self._tokenizer, render([turn], self._template).texts)))
