"""VisualChat over gRPC: the same requests and answers as over HTTP, in protobuf.

Cancelling the call cancels this coroutine, and with it every stage of the answer.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from urllib.parse import unquote

import grpc

from protos import chat_pb2 as pb
from protos.chat_pb2_grpc import VisualChatServicer
from services.gateway import access
from services.gateway.dialogue import Ask, Dialogue, ImageSource, Message, Sampling, to_dialogue
from services.gateway.front import Front
from services.gateway.job import Summary
from services.gateway.keys.api_keys import PRIORITY_HEADER, Caller
from ziya import telemetry
from ziya.errors import BadField, InvalidRequest, ModelNotFound, NotFound

FULL_NAME = pb.DESCRIPTOR.services_by_name["VisualChat"].full_name
_ROLES = {pb.ROLE_USER: "user", pb.ROLE_ASSISTANT: "assistant", pb.ROLE_SYSTEM: "system"}
_OPTIONAL = (
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "max_tokens",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logprobs",
)
Context = grpc.aio.ServicerContext[Any, Any]


class ChatService(VisualChatServicer):
    """The servicer. Errors are raised from our tree; the interceptor gives them their status."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def Chat(self, request: pb.ChatRequest, context: Context) -> AsyncIterator[pb.ChatChunk]:
        """Chunks of text; the last one carries the report."""
        started = time.monotonic()
        entry = access.Entry("grpc", "VisualChat/Chat", _host(context.peer()), started=started)
        metadata = dict(context.invocation_metadata() or ())
        authorization, priority = (str(metadata.get(name, "")) for name in ("authorization", PRIORITY_HEADER))
        with access.told(entry), self._front.admitted("grpc", authorization, priority) as caller:
            entry.key = caller.key.name
            try:
                ask = self._ask(request, context, started, caller)
                entry.asked(ask, request.model or self._front.model)
                async with aclosing(entry.watch(self._front.answer(ask, caller))) as pieces:
                    async for piece in pieces:
                        yield (
                            _last(piece, ask)
                            if isinstance(piece, Summary)
                            else pb.ChatChunk(
                                text=piece.text, request_id=ask.request_id, logprobs=map(_logprob, piece.logprobs)
                            )
                        )
            except BadField as error:
                # Its class is the gateway's own; over the wire it goes by the name that clients know.
                raise InvalidRequest(error.message) from None
            except ModelNotFound as error:
                raise NotFound(error.message) from None

    def _ask(self, request: pb.ChatRequest, context: Context, started: float, caller: Caller) -> Ask:
        adapter = self._front.adapter_of(request.model or self._front.model, caller.key)
        return Ask(
            dialogue=_dialogue(request),
            sampling=_sampling(request.sampling),
            started=started,
            deadline=self._front.limits.deadline(context.time_remaining()),
            request_id=telemetry.request_id.get(),
            salt=caller.key.salt,
            adapter=adapter,
        )


def _host(peer: str) -> str:
    """The address in what gRPC calls a peer, as in ipv4:10.0.0.1:4711 and ipv6:%5B::1%5D:4711."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def _dialogue(request: pb.ChatRequest) -> Dialogue:
    return to_dialogue([_message(turn, f"turns.{i}") for i, turn in enumerate(request.turns)])


def _message(turn: pb.Turn, where: str) -> Message:
    if turn.role not in _ROLES:
        raise BadField(f"{where}.role is missing", f"{where}.role")
    texts: list[str] = []
    images: list[ImageSource] = []
    for number, part in enumerate(turn.parts):
        place = f"{where}.parts.{number}"
        match part.WhichOneof("part"):
            case "text":
                texts.append(part.text)
            case "image":
                images.append(_image(part.image, f"{place}.image"))
            case _:
                raise BadField(f"{place} is empty", place)
    return Message(_ROLES[turn.role], "\n".join(text for text in texts if text), where, tuple(images))


def _image(image: pb.Image, where: str) -> ImageSource:
    match image.WhichOneof("source"):
        case "data":
            return ImageSource(where, data=image.data)
        case "image_id":
            return ImageSource(where, image_id=image.image_id)
        case _:
            raise BadField(f"{where} is empty", where)


def _sampling(given: pb.Sampling) -> Sampling:
    values = {name: getattr(given, name) for name in _OPTIONAL if given.HasField(name)}
    return Sampling(
        **values,
        stop=tuple(given.stop),
        ignore_eos=given.ignore_eos,
        logit_bias=dict(given.logit_bias),
        json_schema=given.json_schema,
    )


def _logprob(word: dict[str, Any]) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        id=word["id"],
        token=word["token"],
        data=bytes(word["bytes"] or ()),
        logprob=word["logprob"],
        top=[_logprob(other) for other in word.get("top_logprobs", ())],
    )


def _last(summary: Summary, ask: Ask) -> pb.ChatChunk:
    usage = summary.usage
    return pb.ChatChunk(
        finish_reason=summary.finish_reason,
        usage=pb.Usage(
            prompt_tokens=usage.prompt,
            image_tokens=usage.image,
            cached_tokens=usage.cached,
            completion_tokens=usage.completion,
        ),
        stage_seconds=summary.stage_seconds,
        images=[pb.ImageInfo(image_id=image.image_id, cached=image.cached) for image in summary.images],
        request_id=ask.request_id,
    )
