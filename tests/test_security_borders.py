"""What no client may send, and how much of what it may: the borders that docs/security.md draws."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor

from protos import chat_pb2, tensor_pb2
from protos.chat_pb2_grpc import VisualChatStub
from services.gateway import dialogue
from services.gateway.openai.request import parse
from services.llama.engine.admission import Admission
from services.llama.engine.seam import Prompt
from tests.gateways import scene
from ziya.errors import MAX_MESSAGE, BadField, InvalidRequest, PromptTooLong

USER = {"role": "user", "content": "hello"}
EMBEDDINGS: list[dict[str, Any]] = [
    {"type": "image_embeds", "image_embeds": "AAAA"},
    {"type": "visual_tokens", "visual_tokens": [[0.0]]},
    {"type": "image_url", "image_url": {"url": "https://x/", "embeds": "AAAA"}},
    {"type": "text", "text": "x", "image_keys": ["ziya:tokens:x"]},
]


def body(**changes: Any) -> bytes:
    return json.dumps({"model": "ziya-visual", "messages": [USER], **changes}).encode()


def picture(count: int) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": "https://example.org/"}}] * count


def messages_in(kind: Descriptor, seen: set[str] | None = None) -> Iterator[Descriptor]:
    """A message type and all that its fields can hold."""
    seen = set() if seen is None else seen
    if kind.full_name in seen:
        return
    seen.add(kind.full_name)
    yield kind
    for field in kind.fields:
        if field.message_type is not None:
            yield from messages_in(field.message_type, seen)


def test_no_tensor_can_be_told_to_the_grpc_face() -> None:
    kinds = list(messages_in(chat_pb2.ChatRequest.DESCRIPTOR))
    assert chat_pb2.Image.DESCRIPTOR in kinds
    assert tensor_pb2.Tensor.DESCRIPTOR not in kinds
    names = {field.name for kind in kinds if not kind.GetOptions().map_entry for field in kind.fields}
    assert not {name for name in names if "key" in name.split("_") or "token" in name or "embed" in name} - {
        "max_tokens"
    }
    of_bytes = {(kind.name, field.name) for kind in kinds for field in kind.fields if field.type == field.TYPE_BYTES}
    assert of_bytes == {("Image", "data")}


@pytest.mark.parametrize("part", EMBEDDINGS)
def test_no_tensor_can_be_told_to_the_http_face(part: dict[str, Any]) -> None:
    with pytest.raises(BadField):
        parse(body(messages=[{"role": "user", "content": [part]}]))


@pytest.mark.parametrize(
    "name", ["prompt_embeds", "image_keys", "visual_tokens", "sampling", "salt", "deadline", "adapter"]
)
def test_inner_fields_are_refused_by_name(name: str) -> None:
    with pytest.raises(BadField) as caught:
        parse(body(**{name: "x"}))
    assert caught.value.param == name


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_visual_tokens_that_are_not_finite_stop_at_the_language_model(number: float) -> None:
    admission, visual_QD = Admission(100, 32, 64), np.zeros((4, 32), np.float16)
    admission.check(Prompt(((1,), (2,)), (visual_QD,)))
    visual_QD[1, 1] = number
    with pytest.raises(InvalidRequest, match="finite"):
        admission.check(Prompt(((1,), (2,)), (visual_QD,)))


WITHIN = [
    {"messages": [USER] * dialogue.MAX_MESSAGES},
    {"messages": [{"role": "user", "content": picture(dialogue.MAX_IMAGES)}]},
    {"messages": [{"role": "user", "content": "字" * dialogue.MAX_TEXT_LENGTH}]},
    {"stop": ["x" * dialogue.MAX_STOP_LENGTH] * dialogue.MAX_STOPS},
    {"logit_bias": dict.fromkeys(map(str, range(dialogue.MAX_BIASES)), 1)},
]
BEYOND = [
    {"messages": [USER] * (dialogue.MAX_MESSAGES + 1)},
    {"messages": [{"role": "user", "content": picture(dialogue.MAX_IMAGES + 1)}]},
    {"messages": [{"role": "user", "content": picture(40)}] * 2},
    {"messages": [{"role": "user", "content": "字" * (dialogue.MAX_TEXT_LENGTH // 2 + 1)}] * 2},
    {"stop": ["x" * (dialogue.MAX_STOP_LENGTH + 1)]},
    {"stop": ["x"] * (dialogue.MAX_STOPS + 1)},
    {"logit_bias": dict.fromkeys(map(str, range(dialogue.MAX_BIASES + 1)), 1)},
]


@pytest.mark.parametrize("change", WITHIN)
def test_so_much_is_read(change: dict[str, Any]) -> None:
    parse(body(**change))


@pytest.mark.parametrize("change", BEYOND)
def test_and_no_more(change: dict[str, Any]) -> None:
    with pytest.raises((BadField, PromptTooLong), match="at most"):
        parse(body(**change))


def test_too_large_a_schema_is_refused() -> None:
    schema = {"type": "object", "description": "x" * dialogue.MAX_SCHEMA_LENGTH}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(BadField, match="at most"):
        parse(body(response_format=wanted))


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "r" * 1_000_000, "content": "x"}]},
        {"f" * 1_000_000: 1},
        {"logit_bias": {"t" * 1_000_000: 1}},
        {"response_format": {"type": "t" * 1_000_000}},
        {"messages": [{"role": "user", "content": [{"type": "t" * 1_000_000}]}]},
    ],
    ids=["role", "field", "token", "format", "part"],
)
def test_what_is_long_is_not_sent_back(change: dict[str, Any]) -> None:
    with pytest.raises(BadField) as caught:
        parse(body(**change))
    assert len(caught.value.message) <= MAX_MESSAGE + 1
    assert len(caught.value.param) <= 200


async def test_a_message_that_is_no_protobuf_is_the_callers_mistake(redis_url: str, tmp_path: Path) -> None:
    async with (
        scene(redis_url, tmp_path) as here,
        grpc.aio.insecure_channel(f"127.0.0.1:{here.gateway.grpc_port}") as channel,
    ):
        call = channel.unary_stream("/ziya.visual.v1.VisualChat/Chat")(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "Traceback" not in str(caught.value.details())
        # The connection is as good as before.
        asked = chat_pb2.ChatRequest(turns=[chat_pb2.Turn(role="ROLE_USER", parts=[chat_pb2.Part(text="x")])])
        assert [chunk async for chunk in VisualChatStub(channel).Chat(asked)][-1].finish_reason == "stop"
