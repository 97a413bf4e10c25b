"""A typed asynchronous client of the gateway's gRPC face: a dialogue with pictures in, a stream of answer out.

    async with ChatClient("127.0.0.1:9000") as client:
        async for chunk in client.ask([Turn("user", "What is this?", (picture,))]):
            print(chunk.text, end="")

Protobuf stays inside. Leaving the loop early cancels the request in every stage.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Self

from protos import chat_pb2, chat_pb2_grpc
from ziya import rpc
from ziya.errors import InvalidRequest, Unavailable
from ziya.prompt import Turn

ROLES = {
    "user": chat_pb2.ROLE_USER,
    "assistant": chat_pb2.ROLE_ASSISTANT,
    "system": chat_pb2.ROLE_SYSTEM,
}


@dataclass(frozen=True, slots=True)
class ImageId:
    """An image that an earlier answer named (`Chunk.image_ids`), sent instead of its bytes."""

    value: str


Picture = bytes | ImageId


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens; None leaves the checkpoint's default. `temperature` 0 is greedy.

    `logit_bias` is by token id; `logprobs` asks for logarithms of probabilities, with so many likeliest tokens beside.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    logprobs: int | None = None
    json_schema: str = ""


@dataclass(frozen=True)
class Usage:
    """`image_tokens` are part of `prompt_tokens`, and `cached_tokens` of the image tokens."""

    prompt_tokens: int
    image_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class TokenLogprob:
    """A token of the answer, the logarithm of its probability, and the likeliest ones in its place."""

    id: int
    token: str
    data: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Chunk:
    """A piece of the answer. All but `text`, `logprobs` and `request_id` are known on the last chunk only."""

    text: str
    request_id: str
    finish_reason: str = ""
    usage: Usage | None = None
    stage_seconds: dict[str, float] = field(default_factory=dict)
    image_ids: tuple[str, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class ChatClient:
    """Talks to the gateway at `host:port`. Close it, or use it as an async context manager."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._channel = rpc.connect(target)
        self._chat = chat_pb2_grpc.VisualChatStub(self._channel).Chat

    async def ask(
        self, turns: Sequence[Turn[Picture]], sampling: Sampling | None = None, *, timeout: float = 120.0
    ) -> AsyncIterator[Chunk]:
        """Streams the answer to a dialogue whose last turn is the user's; `timeout` is in seconds for all of it.

        Raises errors of `ziya/errors.py`; Unavailable says where no stack is running.
        """
        request = chat_pb2.ChatRequest(turns=map(_turn, turns), sampling=_sampling(sampling or Sampling()))
        begun = False
        try:
            async for chunk in rpc.stream(self._chat, request, deadline=time.time() + timeout):
                begun = True
                yield _chunk(chunk)
        except Unavailable as error:
            if "Unavailable: " in str(error.__cause__):
                raise  # the gateway's own words
            if begun:
                raise Unavailable(f"the stack at {self._target} went away in the middle of the answer") from error
            raise Unavailable(f"no stack is running at {self._target}: start one with `ziya up`") from error

    async def close(self) -> None:
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _turn(turn: Turn[Picture]) -> chat_pb2.Turn:
    if turn.role not in ROLES:
        raise InvalidRequest(f"a turn's role must be one of {', '.join(ROLES)}, not {turn.role!r}")
    parts = [chat_pb2.Part(image=_image(picture)) for picture in turn.images]
    return chat_pb2.Turn(role=ROLES[turn.role], parts=[*parts, chat_pb2.Part(text=turn.text)])


def _image(picture: Picture) -> chat_pb2.Image:
    if isinstance(picture, ImageId):
        return chat_pb2.Image(image_id=picture.value)
    return chat_pb2.Image(data=picture)


def _sampling(sampling: Sampling) -> chat_pb2.Sampling:
    return chat_pb2.Sampling(**{name: value for name, value in asdict(sampling).items() if value is not None})


def _chunk(chunk: chat_pb2.ChatChunk) -> Chunk:
    usage = None
    if chunk.HasField("usage"):
        seen = chunk.usage
        usage = Usage(seen.prompt_tokens, seen.image_tokens, seen.cached_tokens, seen.completion_tokens)
    ids = tuple(image.image_id for image in chunk.images)
    logprobs = tuple(map(_logprob, chunk.logprobs))
    return Chunk(chunk.text, chunk.request_id, chunk.finish_reason, usage, dict(chunk.stage_seconds), ids, logprobs)


def _logprob(seen: chat_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(seen.id, seen.token, seen.data, seen.logprob, tuple(map(_logprob, seen.top)))
