"""What a prompt must be before an engine takes it, whichever engine it is: refusals name what is wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Prompt
from ziya.errors import InvalidRequest, PromptTooLong


@dataclass(frozen=True)
class Admission:
    """`vocabulary` tokens, visual tokens of `visual_width`, `context` positions for prompt and answer together."""

    vocabulary: int
    visual_width: int
    context: int

    def check(self, prompt: Prompt) -> None:
        """Raises InvalidRequest or PromptTooLong."""
        if len(prompt.pieces) != len(prompt.visuals) + 1:
            raise InvalidRequest(
                f"a prompt of {len(prompt.pieces)} text pieces takes {len(prompt.pieces) - 1} images, "
                f"but {len(prompt.visuals)} came"
            )
        if not prompt.positions:
            raise InvalidRequest("the prompt is empty")
        if any(not 0 <= token < self.vocabulary for piece in prompt.pieces for token in piece):
            raise InvalidRequest(f"the prompt holds a token that the model, with {self.vocabulary}, does not have")
        self.check_length(prompt.text_tokens, prompt.image_tokens)
        for visual in prompt.visuals:
            self._check_visual(visual)

    def check_bias(self, sampling: Sampling) -> None:
        """Raises InvalidRequest for a biased token that the model does not have."""
        if unknown := [token for token, _ in sampling.logit_bias if token >= self.vocabulary]:
            raise InvalidRequest(f"logit_bias: the model, with {self.vocabulary} tokens, has no token {unknown[0]}")

    def check_length(self, text_tokens: int, image_tokens: int) -> None:
        """Raises PromptTooLong unless at least one token of an answer has room."""
        positions = text_tokens + image_tokens
        if positions >= self.context:
            raise PromptTooLong(
                f"the prompt takes {positions} positions ({image_tokens} of them images), "
                f"and the model has {self.context} for prompt and answer"
            )

    def _check_visual(self, visual: npt.NDArray[np.float16]) -> None:
        if visual.ndim != 2 or visual.shape[1] != self.visual_width:
            raise InvalidRequest(f"visual tokens must be [queries, {self.visual_width}], not {list(visual.shape)}")
        if not np.isfinite(visual).all():
            raise InvalidRequest("visual tokens hold values that are not finite")
