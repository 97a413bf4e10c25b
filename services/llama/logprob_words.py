"""Logarithms of probabilities as the output `logprobs` carries them: OpenAI's objects, with token ids beside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from services.llama.engine.detokenizer import TokenBytes
from services.llama.engine.seam import TokenLogprob

LEAST = -9999.0  # what OpenAI's API says of a token that cannot come; JSON has no infinity


class LogprobWords:
    """Names tokens by their text. Bytes that are no whole character show as U+FFFD; `bytes` has them as they are."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._table = TokenBytes(tokenizer)

    def json(self, logprobs: Sequence[TokenLogprob]) -> str:
        """A JSON array of one object a token: id, token, bytes (null for special ones), logprob, top_logprobs."""
        words = [
            self._word(each.token, each.logprob) | {"top_logprobs": [self._word(*other) for other in each.top]}
            for each in logprobs
        ]
        return json.dumps(words, ensure_ascii=False)

    def _word(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._table[token]
        text = data.decode("utf-8", "replace") if data else self._tokenizer.id_to_token(token) or ""
        return {"id": token, "token": text, "bytes": list(data) or None, "logprob": max(logprob, LEAST)}
