"""A model behind an OpenAI-compatible URL: many questions at once, pictures as data: URLs, greedy.

Every reply is in the ledger beside the store before it counts, so a kill loses nothing that was answered
(training/llm). An answer that reached its longest length is an answer all the same, and scored as it is. A new round
is another seed, which greedy answers do not depend on, so that no cache answers it.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from training.data.writer import image_suffix
from training.errors import BadConfig, BadSample
from training.llm.asker import Asker
from training.llm.endpoint import Endpoint
from training.llm.ledger import Ledger
from training.llm.question import Answer, Failure, Question
from training.scoring.ask import Ask
from training.scoring.store import BAD_PICTURE, Said

_KINDS = {"jpg": "jpeg"}
_Stream = AsyncGenerator[tuple[Ask, Answer | Failure], None]


@dataclass(frozen=True)
class UrlTarget:
    """`ledger` is the file of the replies; `endpoint.revision` tells servers apart that name a model alike."""

    endpoint: Endpoint
    ledger: Path
    max_tokens: int

    @property
    def name(self) -> str:
        return self.endpoint.model

    @property
    def identity(self) -> Mapping[str, object]:
        return {"url": self.endpoint.url, "model": self.endpoint.model, "max_tokens": self.max_tokens}

    async def answers(self, asks: Sequence[Ask]) -> AsyncGenerator[tuple[Ask, Said], None]:
        """As they come. Raises BadConfig for a wrong key or model, EndpointGone when nothing answers for long."""
        broken: list[tuple[Ask, Said]] = []
        with Ledger(self.ledger) as ledger:
            async with Asker(self.endpoint, ledger, None) as asker:
                stream = cast(_Stream, asker.ask_all(self._questions(asks, broken)))
                # Whoever stops early leaves nothing being asked behind a closed client.
                async with aclosing(stream):
                    async for ask, answer in stream:
                        yield ask, _said(answer)
        for pair in broken:
            yield pair

    def _questions(self, asks: Sequence[Ask], broken: list[tuple[Ask, Said]]) -> Iterator[tuple[Ask, Question]]:
        for ask in asks:
            try:
                yield ask, self._question(ask)
            except BadSample as error:
                broken.append((ask, Said("", f"{BAD_PICTURE}: {error.reason}")))

    def _question(self, ask: Ask) -> Question:
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": data_url(ask.item.key, picture)}} for picture in ask.pictures()
        ]
        content = [*parts, {"type": "text", "text": ask.item.question}]
        return Question(({"role": "user", "content": content},), max_tokens=self.max_tokens, seed=ask.round)


def _said(answer: Answer | Failure) -> Said:
    if isinstance(answer, Answer) or answer.reason == "truncated":
        return Said(answer.text.strip())
    return Said("", str(answer))


def data_url(key: str, picture: bytes) -> str:
    """Raises BadSample for what is no picture that a server reads."""
    suffix = image_suffix(picture)
    if suffix is None:
        raise BadSample(key, "wrong image: neither PNG, JPEG, WebP, GIF nor BMP")
    return f"data:image/{_KINDS.get(suffix, suffix)};base64,{base64.b64encode(picture).decode()}"


async def first_model(url: str, api_key: str | None) -> str:
    """The name of the first model that the server lists. Raises BadConfig when it lists none or does not answer."""
    import openai  # noqa: PLC0415

    endpoint = Endpoint(url, "any", api_key)
    http = openai.DefaultAsyncHttpxClient(trust_env=not endpoint.is_here)
    async with openai.AsyncOpenAI(
        base_url=endpoint.base_url, api_key=api_key or "none", timeout=30.0, http_client=http
    ) as client:
        try:
            names = [model.id async for model in client.models.list()]
        except openai.OpenAIError as error:
            raise BadConfig(f"{endpoint.base_url} does not say which models it has: {error}; name one") from error
    if not names:
        raise BadConfig(f"{endpoint.base_url} lists no model")
    return names[0]


def open_url(url: str, model: str, api_key: str | None, concurrency: int) -> Endpoint:
    """The endpoint as evaluations ask it. Raises BadConfig."""
    return Endpoint(url, model, api_key, concurrency=concurrency, revision=url)
