"""Hostile gRPC messages: bytes that are no protobuf, and protobuf whose fields hold what they should not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from protos import chat_pb2, qformer_pb2, tensor_pb2, vision_pb2
from tests.fuzz.check import Defect, Hang, Outcome, Target
from tests.fuzz.pictures import FILES
from tests.fuzz.strategies import TEXTS, mutated
from tests.fuzz.tensors import ENVELOPES

ANSWER_SECONDS = 30.0
_REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_NUMBERS = st.floats(width=64) | st.sampled_from([0.0, 1.0, float("nan"), float("inf"), -1e308])
_IMAGES = st.sampled_from(FILES).flatmap(mutated) | st.binary(max_size=40)
_IDS = TEXTS | st.just("0" * 64) | st.just("F" * 64)
_SALTS = TEXTS
_LONG = st.sampled_from(["x" * 70_000, "图" * 30_000])


@st.composite
def _chat(draw: DrawFn) -> bytes:
    request = chat_pb2.ChatRequest(model=draw(st.sampled_from(["", "", "ziya-visual"]) | TEXTS))
    for _ in range(draw(st.integers(0, 4))):
        turn = request.turns.add(role=draw(st.integers(-1, 4)))
        for _ in range(draw(st.integers(0, 3))):
            part = turn.parts.add()
            match draw(st.integers(0, 3)):
                case 0:
                    part.text = draw(TEXTS | _LONG)
                case 1:
                    part.image.data = draw(_IMAGES)
                case 2:
                    part.image.image_id = draw(_IDS)
                case _:
                    pass
    if draw(st.booleans()):  # nothing wrong before the sampling
        request.Clear()
        request.turns.add(role=chat_pb2.ROLE_USER).parts.add(text="hello")
    sampling = request.sampling
    for name in ("temperature", "top_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        if draw(st.integers(0, 4)) == 0:
            setattr(sampling, name, draw(_NUMBERS))
    for name in ("top_k", "max_tokens", "logprobs"):
        if draw(st.integers(0, 4)) == 0:
            setattr(sampling, name, draw(st.integers(-(1 << 31), (1 << 31) - 1)))
    sampling.stop.extend(draw(st.just([]) | st.lists(TEXTS, max_size=2)))
    sampling.json_schema = draw(st.just("") | TEXTS)
    for token in draw(st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=2)):
        sampling.logit_bias[token] = draw(_NUMBERS)
    return request.SerializeToString()


def _features() -> SearchStrategy[qformer_pb2.Features]:
    tensors = ENVELOPES.map(lambda data: qformer_pb2.Features(tensor=tensor_pb2.Tensor(envelope=data)))
    keys = (TEXTS | st.just("ziya:features:" + "0" * 64)).map(lambda key: qformer_pb2.Features(features_key=key))
    return tensors | keys | st.just(qformer_pb2.Features())


def _serialized(kind: Any, **fields: SearchStrategy[Any]) -> SearchStrategy[bytes]:
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: kind(**given).SerializeToString())


_GOOD = chat_pb2.ChatRequest(turns=[chat_pb2.Turn(role="ROLE_USER", parts=[chat_pb2.Part(text="你好")])])
_BYTES = st.binary(max_size=100) | mutated(_GOOD.SerializeToString()) | st.just(b"\x0a" * 5000)
_REQUESTS: dict[str, SearchStrategy[bytes]] = {
    "VisualChat/Chat": _chat() | _chat() | _BYTES,
    "VisionEncoder/Encode": _BYTES
    | _serialized(
        vision_pb2.EncodeRequest,
        image=_IMAGES,
        image_id=_IDS,
        salt=_SALTS,
        instruction=TEXTS | _LONG,
        inline=st.booleans(),
    ),
    "QFormer/Query": _BYTES
    | _serialized(
        qformer_pb2.QueryRequest, features=_features(), instruction=TEXTS | _LONG, salt=_SALTS, inline=st.booleans()
    ),
    "QFormer/EmbedImage": _BYTES | _serialized(qformer_pb2.EmbedImageRequest, features=_features()),
    "QFormer/EmbedText": _BYTES | _serialized(qformer_pb2.EmbedTextRequest, text=TEXTS | _LONG),
    "QFormer/Match": _BYTES | _serialized(qformer_pb2.MatchRequest, features=_features(), text=TEXTS | _LONG),
}


def _feeding(channels: dict[str, grpc.Channel]) -> Callable[[tuple[str, bytes]], Outcome]:
    """Each call as raw bytes, to the service that is named before the slash."""
    calls = {
        method: channels[service].unary_stream(f"/ziya.visual.v1.{method}")
        for method in _REQUESTS
        if (service := method.partition("/")[0]) in channels
    }

    def feed(value: tuple[str, bytes]) -> Outcome:
        method, data = value
        try:
            for _ in calls[method](data, timeout=ANSWER_SECONDS):
                pass
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise Hang(f"{method} gave no answer") from None
            if error.code() not in _REFUSALS:
                raise Defect(f"{method}: {error.code()} {error.details()}") from None
            return Outcome.REFUSED
        return Outcome.ANSWERED

    return feed


def target(name: str, channels: dict[str, grpc.Channel]) -> Target:
    """Calls of the services that there are channels to."""
    served = [method for method in _REQUESTS if method.partition("/")[0] in channels]
    inputs = st.sampled_from(served).flatmap(lambda method: st.tuples(st.just(method), _REQUESTS[method]))
    return Target(name, inputs, _feeding(channels))
