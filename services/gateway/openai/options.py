"""How an answer is to be chosen and shaped: OpenAI's fields, and our `top_k`, `repetition_penalty`, `ignore_eos`."""

from __future__ import annotations

import json

from services.gateway.dialogue import Sampling
from services.gateway.openai.fields import Fields, number
from ziya.errors import BadField

ANY_OBJECT = '{"type": "object"}'
_FORMAT = "response_format"


def sampling_of(fields: Fields) -> Sampling:
    """Takes the options out of a request's fields. Raises BadField."""
    old, new = fields.take("max_tokens", int), fields.take("max_completion_tokens", int)
    if old is not None and new is not None and old != new:
        raise BadField("max_tokens and max_completion_tokens differ; send one of them", "max_tokens")
    return Sampling(
        temperature=fields.take("temperature", float),
        top_p=fields.take("top_p", float),
        top_k=fields.take("top_k", int),
        repetition_penalty=fields.take("repetition_penalty", float),
        max_tokens=old if new is None else new,
        seed=fields.take("seed", int),
        stop=_stop(fields.raw("stop")),
        ignore_eos=fields.take("ignore_eos", bool) or False,
        presence_penalty=fields.take("presence_penalty", float),
        frequency_penalty=fields.take("frequency_penalty", float),
        logit_bias=_logit_bias(fields),
        logprobs=_logprobs(fields),
        json_schema=_json_schema(fields),
    )


def _stop(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = value if isinstance(value, list) else [value]
    if not all(isinstance(stop, str) for stop in stops):
        raise BadField("stop must be a string or an array of strings", "stop", "invalid_type")
    return tuple(stops)


def _logit_bias(fields: Fields) -> dict[int, float]:
    biases: dict[int, float] = {}
    for name, bias in (fields.take("logit_bias", dict) or {}).items():
        if not (name.isascii() and name.isdecimal() and len(name) < 12):
            raise BadField(f"each name in logit_bias must be a token id, not {name!r}", "logit_bias")
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise BadField("each value in logit_bias must be a number", "logit_bias", "invalid_type")
        biases[int(name)] = number(bias)
    return biases


def _logprobs(fields: Fields) -> int | None:
    """How many likeliest tokens are wanted beside the chosen one; None where no logarithms are."""
    wanted, top = fields.take("logprobs", bool), fields.take("top_logprobs", int)
    if top is not None and not 0 <= top <= 20:
        raise BadField(f"top_logprobs must be at least 0 and at most 20, not {top}", "top_logprobs")
    if top and not wanted:
        raise BadField("top_logprobs is only for logprobs: true", "top_logprobs")
    return (top or 0) if wanted else None


def _json_schema(fields: Fields) -> str:
    """The schema of `response_format` as text; "" for free text."""
    value = fields.take(_FORMAT, dict)
    if value is None:
        return ""
    wanted = Fields(value, _FORMAT)
    kind = wanted.need("type", str)
    schema = ""
    if kind == "json_object":
        schema = ANY_OBJECT
    elif kind == "json_schema":
        schema = _named_schema(Fields(wanted.need("json_schema", dict), f"{_FORMAT}.json_schema"))
    elif kind != "text":
        where = f"{_FORMAT}.type"
        raise BadField(f"{where} must be text, json_object or json_schema, not {kind!r}", where)
    wanted.done()
    return schema


def _named_schema(fields: Fields) -> str:
    """Its name, description and strictness change nothing: whatever can be followed is followed strictly."""
    fields.need("name", str)
    fields.take("description", str)
    fields.take("strict", bool)
    schema = fields.take("schema", dict)
    fields.done()
    return ANY_OBJECT if schema is None else json.dumps(schema, ensure_ascii=False)
