"""The visual tokens of a request: off the bus by key, as soon as they are there, or out of the request itself."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy.typing as npt

from services.llama.request import Request
from ziya import tracing
from ziya.bus import Announcements
from ziya.checkpoint import CheckpointConfig
from ziya.errors import InvalidEnvelope, VisualTokensSpoilt
from ziya.wire import Stage, unpack

Array = npt.NDArray[Any]


# More than header, fingerprint and trace context of an envelope take.
ENVELOPE_BYTES = 4096


def largest_tokens(config: CheckpointConfig) -> int:
    """Bytes of the largest envelope of visual tokens that can be of use."""
    return config.queries * config.qformer_width * 4 + ENVELOPE_BYTES


class VisualTokens:
    """Waits for tokens of this checkpoint's Q-Former."""

    def __init__(self, announcements: Announcements, config: CheckpointConfig) -> None:
        self._announcements = announcements
        self._fingerprint = config.fingerprints["qformer"]
        self._shape = (config.queries, config.qformer_width)

    async def of(self, request: Request) -> tuple[Array, ...]:
        """float16 [queries, Q-Former width] of each image. Raises what was announced, or what the bus does."""
        if request.inline is not None:
            return tuple(request.inline)
        tasks = [asyncio.create_task(self._wait(key, request.deadline)) for key in request.keys]
        try:
            return tuple(await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # the first error ends the wait for all
                task.cancel()

    async def _wait(self, key: str, deadline: float) -> Array:
        began = time.perf_counter()
        data = await self._announcements.wait(key, deadline)
        try:
            envelope = unpack(data, stage=Stage.TOKENS, fingerprint=self._fingerprint, shape=self._shape)
        except InvalidEnvelope as error:
            # not the caller's fault: whoever asked can have the tokens computed again
            raise VisualTokensSpoilt(f"what lies under {key} cannot be used: {error.message}") from error
        # The link leads to the request for which they were computed, which need not be this one.
        tracing.record("llama.visual_wait", began, time.perf_counter(), links=[tracing.accept(envelope.traceparent)])
        return envelope.array
