"""The language model behind Triton: one KServe v2 stream per answer.

Raw `grpc.aio` stubs on one shared channel: the tritonclient wrapper adds a queue and a numpy array per
response, and hides the call that must be cancelled. A request is one message; a response carries the next
piece of text, and the last one the reason and the usage. Errors arrive as `Name: sentence` (ziya.errors).
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as kserve
from tritonclient.grpc import service_pb2_grpc as kserve_grpc

from ziya.errors import DeadlineExceeded, Internal, Unavailable, ZiyaError, from_line, from_status
from ziya.tracing import Span

MODEL = "ziya_llama"
_DRAIN_SECONDS = 1.0
# Triton's own sentences for a model that is not there (any more), or whose Python process is started again.
_RESTARTING = ("Stub process", "unknown model", "is not ready", "Server is stopping")


@dataclass(frozen=True, slots=True)
class Piece:
    """What one response brings: text, and on the last one why it ended ("stop", "length") and the usage.

    `tokens` were written since the response before; 0 where the language model does not say. `logprobs` are OpenAI's
    objects, with the token's id beside, one a token where they were asked for.
    """

    text: str
    finish_reason: str = ""
    usage: dict[str, Any] | None = None
    tokens: int = 0
    logprobs: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class InlineTokens:
    """Visual tokens sent with the request: `data` holds float16 [images, queries, width], little-endian."""

    shape: tuple[int, int, int]
    data: bytes


@dataclass(frozen=True, slots=True)
class Prompt:
    """n + 1 texts around n images, which are keys on the bus or inline tokens."""

    texts: Sequence[str]
    images: Sequence[str] | InlineTokens
    sampling: str


class LlamaStream:
    """One answer in the making: `read` until a piece has a finish reason; `close` in every case, also for the span.

    `over`: the model is done with it, well or not.
    """

    def __init__(self, call: Any, span: Span) -> None:
        self._call, self._span = call, span
        self._finished = self.over = False

    async def read(self) -> Piece:
        """The next piece. Raises what the model or the connection raised, from our tree."""
        try:
            return await self._read()
        except ZiyaError as error:
            self.over = True
            self._span.fail(error)
            raise

    async def _read(self) -> Piece:
        try:
            response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _from_rpc(error) from None
        if response is grpc.aio.EOF:
            raise Internal("the language model ended its stream without a finish reason")
        if response.error_message:
            raise _from_message(response.error_message)
        piece = _piece(response.infer_response)
        self._finished = self.over = bool(piece.finish_reason)
        return piece

    async def close(self) -> None:
        """Lets a finished call end by itself, cancels any other: Triton then tells the model to stop."""
        if self._finished and not self._call.done():
            try:
                async with asyncio.timeout(_DRAIN_SECONDS):
                    await self._call.read()
            except (TimeoutError, grpc.aio.AioRpcError):
                pass
        self._call.cancel()
        self._span.end()


class LlamaClient:
    """Opens streams on one shared channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = kserve_grpc.GRPCInferenceServiceStub(channel)
        # Triton's method takes a stream of requests. One request and its end are the same on the wire, and cost less
        # than an iterator of requests, which is a task and two further operations.
        self._infer: Any = channel.unary_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=kserve.ModelInferRequest.SerializeToString,
            response_deserializer=kserve.ModelStreamInferResponse.FromString,
        )

    def open(self, prompt: Prompt, *, deadline: float, request_id: str, span: Span) -> LlamaStream:
        """Starts the call and returns at once. `deadline` in unix seconds; `span` is that of the call."""
        timeout = deadline - time.time()
        if timeout <= 0:
            span.end()
            raise DeadlineExceeded("no time was left to ask the language model")
        # Triton's own spans, where it takes some, belong to the same trace as its model's.
        known = (("x-request-id", request_id), ("traceparent", span.traceparent))
        metadata = tuple(pair for pair in known if pair[1])
        call = self._infer(_request(prompt, request_id), timeout=timeout, metadata=metadata)
        return LlamaStream(call, span)

    async def ready(self) -> None:
        """Raises Unavailable when Triton, or the model in it, cannot take requests."""
        try:
            reply = await self._stub.ModelReady(kserve.ModelReadyRequest(name=MODEL))
        except grpc.aio.AioRpcError as error:
            raise Unavailable(f"Triton cannot be reached: {error.details()}") from None
        if not reply.ready:
            raise Unavailable(f"Triton's model {MODEL} is not ready")


def _request(prompt: Prompt, request_id: str) -> kserve.ModelInferRequest:
    request = kserve.ModelInferRequest(model_name=MODEL, id=request_id)
    _add(request, "prompt", "BYTES", [len(prompt.texts)], _strings(prompt.texts))
    if isinstance(prompt.images, InlineTokens):
        _add(request, "visual_tokens", "FP16", prompt.images.shape, prompt.images.data)
    elif prompt.images:
        _add(request, "image_keys", "BYTES", [len(prompt.images)], _strings(prompt.images))
    _add(request, "sampling", "BYTES", [1], _strings([prompt.sampling]))
    return request


def _add(request: kserve.ModelInferRequest, name: str, datatype: str, shape: Sequence[int], data: bytes) -> None:
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(data)


def _strings(values: Sequence[str]) -> bytes:
    encoded = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(data)) + data for data in encoded)


def _piece(response: kserve.ModelInferResponse) -> Piece:
    names = (output.name for output in response.outputs)
    raw = dict(zip(names, response.raw_output_contents, strict=True))
    wanted = ("text", "finish_reason", "usage", "logprobs")
    text, reason, usage, logprobs = (str(raw.get(name, b"")[4:], "utf-8") for name in wanted)
    # A language model of an older release does not tell its tokens.
    tokens = int.from_bytes(raw.get("tokens", b""), "little")
    return Piece(
        text,
        reason,
        json.loads(usage) if usage else None,
        tokens,
        tuple(json.loads(logprobs)) if logprobs else (),
    )


def _from_message(message: str) -> ZiyaError:
    if any(sentence in message for sentence in _RESTARTING):
        return Unavailable(f"the language model is starting: {message}")
    return from_line(message)


def _from_rpc(error: grpc.aio.AioRpcError) -> ZiyaError:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("the request's time was over before the answer was complete")
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(f"the language model cannot be reached: {error.details()}")
    return from_status(error.code(), error.details() or "the language model gave no reason")
