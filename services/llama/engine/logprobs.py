"""Logarithms of probabilities, for the requests that ask: the model's own, before bias, penalties and temperature.

So they say what the model thinks of the token that was chosen, however it came to be chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from services.llama.engine.choice import Choice, Chosen
from services.llama.engine.seam import TokenLogprob


class Logprobs:
    """Of one step's logits, [rows, vocabulary]; made before they are changed. L rows of them ask."""

    def __init__(self, logits_SV: Tensor, choices: Sequence[Choice]) -> None:
        self._rows = [row for row, choice in enumerate(choices) if choice.sampling.logprobs is not None]
        if self._rows:
            self._counts = [choices[row].sampling.logprobs or 0 for row in self._rows]
            self._logits_LV = logits_SV[self._rows]  # a copy
            self._total_L1 = self._logits_LV.logsumexp(-1, keepdim=True)

    def of(self, tokens: list[int]) -> list[Chosen]:
        """What was chosen, a token a row, with the logarithms that its row asked for."""
        chosen = [Chosen(token) for token in tokens]
        if not self._rows:
            return chosen
        asked = [tokens[row] for row in self._rows]
        picked_L1 = self._logits_LV.gather(1, self._logits_LV.new_tensor(asked).long()[:, None]) - self._total_L1
        most = min(max(self._counts), self._logits_LV.shape[1])
        best_LT, ids_LT = self._logits_LV.topk(most)
        best, ids = (best_LT - self._total_L1).tolist(), ids_LT.tolist()
        for place, (row, count) in enumerate(zip(self._rows, self._counts, strict=True)):
            top = tuple(zip(ids[place][:count], best[place][:count], strict=True))
            chosen[row] = Chosen(tokens[row], TokenLogprob(tokens[row], float(picked_L1[place, 0]), top))
        return chosen
