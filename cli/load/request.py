"""One request as it is to be sent, and what came of it.

All times are seconds from the start of the run, of one clock. `intended` is when the request should have been sent:
in an open loop by the arrival pattern, in a closed one when its caller was free. Latencies count from there, so a
client or a server that holds requests up cannot hide it (coordinated omission).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

from ziya.prompt import Turn

Clock = Callable[[], float]


@dataclass(frozen=True)
class Picture:
    """An encoded image file; `kind` as in image/KIND."""

    data: bytes
    kind: str


@dataclass(frozen=True)
class Request:
    """A dialogue that ends with the user's turn. `shown` and `reused` count the pictures of that last turn alone."""

    number: int
    turns: tuple[Turn[Picture], ...]
    max_tokens: int
    shown: int = 0
    reused: int = 0

    @property
    def follow_up(self) -> bool:
        return len(self.turns) > 1


@dataclass(frozen=True)
class Options:
    """The same for all requests. `extra` is put into the body of HTTP requests as it is."""

    temperature: float | None = 0.0
    ignore_eos: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Usage:
    """Tokens as the server counted them; 0 where it says nothing of them."""

    prompt: int
    completion: int
    cached: int = 0
    image: int = 0


class Failed(Exception):
    """A request was not answered. `kind` is a word for counting, such as `http 429` or `broken`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class Answer:
    """What came of a request. `pieces` are the arrivals of its texts; `ended` is None where the run ended before it."""

    request: Request
    intended: float
    sent: float | None = None
    pieces: list[float] = field(default_factory=list)
    ended: float | None = None
    text: str = ""
    finish_reason: str = ""
    usage: Usage | None = None
    stages: dict[str, float] = field(default_factory=dict)
    failure: Failed | None = None

    @property
    def succeeded(self) -> bool:
        return self.ended is not None and self.failure is None

    @property
    def ttft(self) -> float | None:
        """Time to first token."""
        return self.pieces[0] - self.intended if self.pieces else None

    @property
    def e2e(self) -> float | None:
        """Time of the whole answer."""
        return None if self.ended is None else self.ended - self.intended

    @property
    def gaps(self) -> list[float]:
        """Times between pieces of text: the inter-token latencies, where a piece is a token."""
        return [later - earlier for earlier, later in pairwise(self.pieces)]

    @property
    def tokens(self) -> int:
        """By the server's usage, else as many as pieces came."""
        return self.usage.completion if self.usage else len(self.pieces)

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first. An answer that came in one piece tells nothing of it."""
        several = len(self.pieces) > 1 and self.tokens > 1
        return (self.pieces[-1] - self.pieces[0]) / (self.tokens - 1) if several else None


class Caller(Protocol):
    """Sends requests. Any number may be on their way at once."""

    async def ask(self, request: Request, answer: Answer) -> None:
        """Fills `answer` with pieces, text, finish reason and usage; raises Failed unless the answer is complete."""

    async def close(self) -> None: ...
