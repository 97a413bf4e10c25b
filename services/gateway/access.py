"""The access log: one line a request at its end, with who asked, what it cost and how it went.

Of what a client sent it holds only names and numbers: no prompt, no answer, no key, and no sentence of a BadField,
which may quote the request. Whoever learns something on the way notes it in `current`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus

from grpc import StatusCode

from services.gateway.dialogue import Ask
from services.gateway.job import Summary
from services.gateway.llama import Piece
from ziya import tracing
from ziya.errors import BadField, Cancelled, DeadlineExceeded, Internal, ZiyaError, status_of
from ziya.interceptors import may_be_logged

NAME_LENGTH = 128
# gRPC ends a call by a clock of its own, which may be a little early.
CLOCK_SECONDS = 0.02
_FIELD = re.compile(r"[\w.-]{1,64}", re.ASCII)
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Entry:
    """One request. `method` is the route or the RPC, `client` an address, `key` the name of an API key."""

    face: str
    method: str
    client: str
    status: int | str = ""
    key: str = ""
    model: str = ""
    images: int = 0
    first_text: float | None = None
    summary: Summary | None = None
    failure: ZiyaError | None = None
    started: float = field(default_factory=time.monotonic)
    deadline: float = math.inf  # unix seconds

    def asked(self, ask: Ask, model: str) -> None:
        self.model, self.deadline = model[:NAME_LENGTH], ask.deadline
        self.images = sum(len(turn.images) for turn in ask.dialogue.turns)

    async def watch(self, pieces: AsyncGenerator[Piece | Summary, None]) -> AsyncGenerator[Piece | Summary, None]:
        """The same pieces; the entry keeps when the first came, and the summary. Closing it closes them."""
        try:
            async for piece in pieces:
                if self.first_text is None:
                    self.first_text = time.monotonic() - self.started
                if isinstance(piece, Summary):
                    self.summary = piece
                yield piece
        finally:
            await pieces.aclose()

    def settle(self) -> None:
        """Gives a status to a request that ended without one: over gRPC each does, over HTTP one whose client left."""
        if self.status == "":
            code, http = status_of(self.failure) if self.failure else (StatusCode.OK, HTTPStatus.OK)
            self.status = code.name if self.face == "grpc" else int(http)

    def line(self) -> dict[str, object]:
        """What the log gets. Times are in seconds since the request's arrival."""
        told: dict[str, object] = {
            "face": self.face,
            "method": self.method,
            "client": self.client,
            "status": self.status,
            "outcome": type(self.failure).__name__ if self.failure else "ok",
            "seconds": round(time.monotonic() - self.started, 6),
        }
        if self.failure is not None:
            told |= _failed(self.failure)
        if self.model:
            told |= {"model": self.model, "images": self.images}
        if self.key:
            told["key"] = self.key
        if self.first_text is not None:
            told["ttft_seconds"] = round(self.first_text, 6)
        return told | (_cost(self.summary) if self.summary else {})


current: ContextVar[Entry] = ContextVar("access")


@contextmanager
def told(entry: Entry, *, quiet: bool = False) -> Iterator[Entry]:
    """Logs the entry when the body ends, however it does; a quiet one only for those who debug."""
    current.set(entry)
    try:
        yield entry
    except ZiyaError as error:
        entry.failure = error
        raise
    except (asyncio.CancelledError, GeneratorExit):
        late = time.time() >= entry.deadline - CLOCK_SECONDS
        entry.failure = DeadlineExceeded("the time was over") if late else Cancelled("the client went away")
        raise
    except Exception:
        entry.failure = Internal("the handler failed")
        raise
    finally:
        entry.settle()
        log.log(logging.DEBUG if quiet else logging.INFO, "request ended", extra=entry.line())


def describe(span: tracing.Span, entry: Entry) -> None:
    """The same, as far as a trace is to know it."""
    attributes: dict[str, str | int] = {"ziya.face": entry.face, "ziya.status": str(entry.status)}
    if entry.model:
        attributes |= {"ziya.model": entry.model, "ziya.images": entry.images}
    if entry.summary is not None:
        attributes |= {"ziya.completion_tokens": entry.summary.usage.completion}
    span.set(attributes)
    if entry.failure is not None:
        span.fail(entry.failure)


def _failed(error: ZiyaError) -> dict[str, object]:
    if isinstance(error, BadField):
        # An unknown field is named as the client named it, who may have sent anything.
        return {"param": error.param} if _FIELD.fullmatch(error.param) else {}
    return {"reason": error.message} if may_be_logged(error) else {}


def _cost(summary: Summary) -> dict[str, object]:
    usage = summary.usage
    return {
        "finish_reason": summary.finish_reason,
        "prompt_tokens": usage.prompt,
        "image_tokens": usage.image,
        "cached_tokens": usage.cached,
        "completion_tokens": usage.completion,
        "stage_seconds": summary.stage_seconds,
    }
