"""A turn of the conversation: a question goes out, and what the page shows of its answer comes back as it grows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

import anyio
import httpx

from services.gateway.page import answer, sentences
from services.gateway.page.answer import Answer, Refused
from services.gateway.page.history import Images, LostImage, NotImage, messages_of, question_of
from services.gateway.page.words import say

log = logging.getLogger(__name__)
# What comes within one frame is shown together: each showing costs the page's process some milliseconds.
FRAME_SECONDS = 0.05
# Of silence, until the clock is shown anew; by that, too, it is noticed that the visitor has left.
TICK_SECONDS = 1.0


@dataclass(frozen=True)
class Question:
    """What a visitor asks, and how. `history` is gradio's, `files` are paths; without a `seed` it is chance."""

    text: str
    files: Sequence[str]
    history: Sequence[Mapping[str, Any]]
    key: str
    language: str
    model: str
    temperature: float
    top_p: float
    max_tokens: float
    seed: float | None

    def body(self, images: Images) -> dict[str, Any]:
        """The API's request. Raises LostImage or NotImage."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*messages_of(self.history, images), question_of(self.text, self.files, images)],
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": int(self.max_tokens),
        }
        return body if self.seed is None else body | {"seed": int(self.seed)}


@dataclass(frozen=True)
class View:
    """What is shown: the answer so far, a line on how it goes, and why there is no more of it."""

    text: str = ""
    line: str = ""
    failure: str = ""


async def ask(
    client: httpx.AsyncClient, question: Question, images: Images, left: asyncio.Event
) -> AsyncGenerator[View, None]:
    """Views, each in place of the one before, until `left` is set. Raises nothing that a visitor has to understand."""
    language, began, seen = question.language, time.monotonic(), Answer()
    if not question.text.strip() and not question.files:
        yield View(failure=say(language, "empty"))
        return
    try:
        body = await asyncio.to_thread(question.body, images)
        async with aclosing(_paced(answer.stream(client, body, question.key), left)) as pieces:
            async for piece in pieces:
                seen = piece or seen
                yield View(seen.text, say(language, "working", seconds=time.monotonic() - began))
        yield View(seen.text, say(language, "stopped") if left.is_set() else sentences.report(language, seen))
    except Refused as error:
        yield View(seen.text, failure=sentences.refusal(language, error, question.key))
    except LostImage:
        yield View(failure=say(language, "lost_image"))
    except NotImage as error:
        yield View(failure=say(language, "not_image", name=error.name))
    except httpx.HTTPError:
        yield View(seen.text, failure=say(language, "no_gateway"))
    except Exception:  # the border to a visitor, who would see gradio's "Error" and no sentence
        log.exception("a question could not be asked")
        yield View(seen.text, failure=say(language, "page_defect"))


async def _paced(pieces: AsyncGenerator[Answer, None], left: asyncio.Event) -> AsyncGenerator[Answer | None, None]:
    """The newest piece, a frame apart from the one before; None after a tick without any. Ends a tick after `left`."""
    newest: Answer | None = None
    fresh, scope = asyncio.Event(), anyio.CancelScope()

    async def read() -> None:
        nonlocal newest
        # anyio's scope, as asyncio's cancellation could keep httpx from giving its connection back
        with scope:
            async for piece in pieces:
                newest = piece
                fresh.set()

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda _: fresh.set())
    try:
        while not left.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(fresh.wait(), TICK_SECONDS)
            over, new = reader.done(), fresh.is_set()
            fresh.clear()
            yield newest if new else None
            if over:
                reader.result()
                return
            await asyncio.wait({reader}, timeout=FRAME_SECONDS)
    finally:
        scope.cancel()
        await asyncio.wait({reader})
