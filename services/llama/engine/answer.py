"""One answer as it grows: tokens become text until an end token, a stop string or the limit ends it.

Whichever engine the tokens come from, this says what ends an answer, and what of it is shown.
"""

from __future__ import annotations

from services.llama.engine.detokenizer import Detokenizer, StopStrings, TokenBytes
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Delta, TokenLogprob, Usage


class Answer:
    """`ids` are the tokens so far, at most `limit`; `finish_reason` is "" until the end, then "stop" or "length"."""

    def __init__(self, table: TokenBytes, sampling: Sampling, eos: frozenset[int], limit: int) -> None:
        self.ids: list[int] = []
        self.finish_reason = ""
        self._eos = frozenset[int]() if sampling.ignore_eos else eos
        self._limit = limit
        self._detokenizer = Detokenizer(table)
        self._stops = StopStrings(sampling.stop)
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._taken = 0

    def append(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """The next token; none may follow once the answer has ended."""
        self.ids.append(token)
        if logprob is not None:
            self._logprobs.append(logprob)
        if token in self._eos:
            self.end("stop")
            return
        text, stopped = self._stops.push(self._detokenizer.push(token))
        self._text.append(text)
        if stopped:
            self.finish_reason = "stop"
        elif len(self.ids) >= self._limit:
            self.end("length")

    def end(self, reason: str) -> None:
        """Gives out what was held back; a stop string may still be completed by the end of a broken character."""
        self.finish_reason = reason
        text, stopped = self._stops.push(self._detokenizer.flush())
        self._text.append(text)
        if stopped:
            self.finish_reason = "stop"
        else:
            self._text.append(self._stops.flush())

    def take(self, usage: Usage | None = None) -> Delta | None:
        """What is new since the last time; None while that is nothing, as within a character."""
        text = "".join(self._text)
        if not text and not self.finish_reason:
            return None
        ids, logprobs = tuple(self.ids[self._taken :]), tuple(self._logprobs)
        self._text.clear()
        self._logprobs.clear()
        self._taken = len(self.ids)
        return Delta(text, ids, self.finish_reason, usage, logprobs)
