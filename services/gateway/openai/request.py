"""OpenAI's chat completion request, read into our own terms.

Fields of OpenAI's API that we do not support are accepted with the value that changes nothing, and refused
by name with any other; unknown fields are refused. Our additions: `top_k`, `repetition_penalty`,
`ignore_eos`, and an image named by an earlier answer: `{"type": "image_id", "image_id": "…"}` or
`{"type": "image_url", "image_url": {"url": "image-id:…"}}`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic_core import from_json

from services.gateway.dialogue import Dialogue, ImageSource, Message, Sampling, to_dialogue
from services.gateway.openai.fields import Fields
from services.gateway.openai.options import sampling_of
from ziya.errors import BadField

IMAGE_ID_SCHEME = "image-id:"
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

# The values that change nothing; an empty tuple accepts every value.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "modalities": (["text"],),
    "audio": (None,),
    "prediction": (None,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (),
    "store": (False,),
    "metadata": (),
    "user": (),
    "safety_identifier": (),
    "prompt_cache_key": (),
    "service_tier": ("auto", "default"),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (None,),
}
_NEUTRAL_IN_MESSAGE: dict[str, tuple[object, ...]] = {
    "name": (),
    "refusal": (None,),
    "annotations": ([],),
    "audio": (None,),
    "function_call": (None,),
    "tool_calls": ([],),
    "reasoning_content": (None,),
}


@dataclass(frozen=True, slots=True)
class Completion:
    """A checked request: what to answer, and how to deliver it."""

    model: str
    dialogue: Dialogue
    sampling: Sampling
    stream: bool
    include_usage: bool


def parse(body: bytes) -> Completion:
    """The request in a body. Raises BadField."""
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise BadField(f"the body is not valid JSON: {error}", "", "invalid_json") from None
    fields = Fields(value)
    model = fields.need("model", str)
    messages = [_message(each, f"messages.{i}") for i, each in enumerate(fields.need("messages", list))]
    sampling = sampling_of(fields)
    stream = fields.take("stream", bool) or False
    include_usage = _stream_options(fields, stream)
    fields.neutral(_NEUTRAL)
    fields.done()
    return Completion(model, to_dialogue(messages), sampling, stream, include_usage)


def _stream_options(fields: Fields, stream: bool) -> bool:
    value = fields.take("stream_options", dict)
    if value is None:
        return False
    if not stream:
        raise BadField("stream_options is only for stream: true", "stream_options")
    options = Fields(value, "stream_options")
    include_usage = options.take("include_usage", bool) or False
    options.neutral({"include_obfuscation": (False,)})
    options.done()
    return include_usage


def _message(value: object, path: str) -> Message:
    fields = Fields(value, path)
    role = fields.need("role", str)
    if role not in _ROLES:
        raise BadField(f"{path}.role must be one of {', '.join(_ROLES)}, not {role!r}", f"{path}.role")
    content = fields.raw("content")
    fields.neutral(_NEUTRAL_IN_MESSAGE)
    fields.done()
    if isinstance(content, str):
        return Message(_ROLES[role], content, path)
    if not isinstance(content, list):
        raise BadField(f"{path}.content must be a string or an array of parts", f"{path}.content", "invalid_type")
    parts = [_part(part, f"{path}.content.{i}") for i, part in enumerate(content)]
    text = "\n".join(part for part in parts if isinstance(part, str) and part)
    return Message(_ROLES[role], text, path, tuple(part for part in parts if isinstance(part, ImageSource)))


def _part(value: object, path: str) -> str | ImageSource:
    fields = Fields(value, path)
    kind = fields.need("type", str)
    part: str | ImageSource
    if kind == "text":
        part = fields.need("text", str)
    elif kind == "image_url":
        part = _image_url(Fields(fields.need("image_url", dict), f"{path}.image_url"))
    elif kind == "image_id":
        part = ImageSource(f"{path}.image_id", image_id=fields.need("image_id", str))
    else:
        raise BadField(f"{path}.type must be text, image_url or image_id, not {kind!r}", f"{path}.type")
    fields.done()
    return part


def _image_url(fields: Fields) -> ImageSource:
    url, where = fields.need("url", str), fields.path("url")
    fields.neutral({"detail": ("auto", "low", "high")})
    fields.done()
    if url.startswith(IMAGE_ID_SCHEME):
        return ImageSource(where, image_id=url.removeprefix(IMAGE_ID_SCHEME))
    if not url.startswith(("data:", "http:", "https:")):
        raise BadField(f"{where} must be a data:, https: or {IMAGE_ID_SCHEME} URL", where, "invalid_image_url")
    return ImageSource(where, url=url)
