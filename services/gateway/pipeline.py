"""One request from its images to its last word, as one async generator.

    1. open the images, compute their ids and keys             (here)
    2. open Triton's stream with the keys, at once             (paths.py)
    3. ask Redis which visual tokens are there, and have the missing ones made meanwhile  (paths.py)
    4. hand the text through as it comes                       (here)

Until the first text everything may be done again without the client noticing: a stage that is being
restarted is asked again until the patience is over, and when Redis is down, or loses tokens, the same
images go inline through the same services. After the first text an error is the client's to see.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator

from services.gateway.dialogue import Ask, ImageSource
from services.gateway.encoders import Visual
from services.gateway.images.image_source import ImageOpener, Picture
from services.gateway.job import Job, Summary
from services.gateway.llama import LlamaStream, Piece
from services.gateway.metrics import GatewayMetrics
from services.gateway.pace import Pace
from services.gateway.paths import Paths
from services.gateway.together import cancel
from ziya import tracing
from ziya.content import ContentKeys
from ziya.errors import BusUnavailable, DeadlineExceeded, Unavailable, VisualTokensMissing, VisualTokensSpoilt
from ziya.prompt import Turn, render

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


class Pipeline:
    """Answers requests. Holds no state of a request: that is in its Job.

    `patience`: seconds for which a stage that cannot be reached is asked again before the first text.
    """

    def __init__(
        self, content: ContentKeys, opener: ImageOpener, paths: Paths, metrics: GatewayMetrics, *, patience: float
    ) -> None:
        self._content = content
        self._opener = opener
        self._paths = paths
        self._metrics = metrics
        self._patience = patience

    async def answer(self, ask: Ask) -> AsyncGenerator[Piece | Summary, None]:
        """Pieces of text, then one Summary. Raises ZiyaError; closing the generator stops every stage."""
        job = Job(ask)
        stream: LlamaStream | None = None
        try:
            stream, piece = await self._before_first_text(job)
            job.texts_came = True
            job.mark("time_to_first_token")
            self._metrics.first_token.observe(job.stage_seconds["time_to_first_token"])
            pace = Pace(self._metrics.inter_token)
            while not piece.finish_reason:
                if piece.text or piece.logprobs:
                    yield piece
                piece = await stream.read()
                pace.came(piece.tokens)
            if piece.text or piece.logprobs:
                yield Piece(piece.text, logprobs=piece.logprobs)
            summary = job.summary(piece)
            self._metrics.answered(summary)
            yield summary
        finally:
            await cancel(job.encodes)
            self._paths.leave(job)
            if stream is not None:
                await stream.close()

    async def _before_first_text(self, job: Job) -> tuple[LlamaStream, Piece]:
        try:
            async with asyncio.timeout(job.ask.deadline - time.time()):
                await self._open(job)
                return await self._until_answered(job)
        except TimeoutError:
            raise DeadlineExceeded("the request's time was over before its first text") from None

    async def _open(self, job: Job) -> None:
        """From the dialogue to the prompt's texts and its images with their keys."""
        dialogue = job.ask.dialogue
        sources = [source for turn in dialogue.turns for source in turn.images]
        with tracing.span("gateway.images", {"ziya.images": len(sources)}):
            pictures = iter(await self._opener.open_all(sources, job.ask.deadline) if sources else ())
        system = f"{dialogue.system}\n" if dialogue.system else ""
        turns: list[Turn[Visual]] = []
        for turn in dialogue.turns:
            visuals = tuple(self._visual(next(pictures), turn, job.ask.salt) for _ in turn.images)
            turns.append(Turn(turn.role, system + turn.text, visuals))
            system = ""
        prompt = render(turns, self._content.config.prompt)
        job.texts, job.visuals = prompt.texts, prompt.images
        job.mark("admission")

    def _visual(self, picture: Picture, turn: Turn[ImageSource], salt: str) -> Visual:
        """A Q-Former that reads the instruction reads the text of the turn that shows the image."""
        features_key = self._content.features(picture.image_id, salt)
        return Visual(picture, turn.text, features_key, self._content.tokens(features_key, turn.text), salt)

    async def _until_answered(self, job: Job) -> tuple[LlamaStream, Piece]:
        """Tries until the model's first piece is there; the module's docstring says what is tried again."""
        give_up = time.monotonic() + self._patience
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._paths.attempt(job)
            except (BusUnavailable, VisualTokensMissing) as error:
                if job.inline:
                    raise Unavailable(f"the visual tokens could not be made without Redis: {error.message}") from None
                job.inline = True
                if isinstance(error, VisualTokensSpoilt):
                    await self._paths.discard(job)
                self._metrics.inline.labels(type(error).__name__).inc()
            except Unavailable as error:
                if time.monotonic() + pause > give_up:
                    raise
                self._metrics.retries.labels(type(error).__name__).inc()
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, _LONGEST_PAUSE)
