"""How a request wants its tokens chosen: one frozen value, checked where it enters.

The order is: bias, repetition penalty (transformers' meaning: over prompt and answer), frequency and presence penalty
(OpenAI's: over the answer), what a JSON schema allows, then temperature, top-k and top-p (transformers'). Temperature 0
is greedy. A request with a seed gets the same answer alone and in a busy batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ziya.checkpoint import GenerationDefaults
from ziya.errors import InvalidRequest

MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_BIASES = 1024
MAX_TOP_LOGPROBS = 20
MAX_SCHEMA_LENGTH = 32_768


@dataclass(frozen=True)
class Sampling:
    """Raises InvalidRequest, naming the field, for what cannot be done. `top_k` 0 and `top_p` 1 mean off.

    `logit_bias` has (token id, what is added to its logit). `logprobs` asks for the logarithms of the chosen tokens'
    probabilities and of so many likeliest ones beside them. `json_schema` is a JSON schema as text, "" for none.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_tokens: int = 128
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    json_schema: str = ""

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0.0, 100.0)
        _number("top_p", self.top_p, 0.0, 1.0, above=True)
        _integer("top_k", self.top_k, 0, 1 << 31)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, above=True)
        _integer("max_tokens", self.max_tokens, 1, 1 << 31)
        if self.seed is not None:
            _integer("seed", self.seed, -(1 << 63), 1 << 64)
        _stops(self.stop)
        if not isinstance(self.ignore_eos, bool):
            raise InvalidRequest("ignore_eos must be true or false")
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _biases(self.logit_bias)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, MAX_TOP_LOGPROBS + 1)
        _schema(self.json_schema)
        if self.json_schema and self.ignore_eos:
            raise InvalidRequest("json_schema and ignore_eos exclude each other: a whole JSON text has an end")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @classmethod
    def parse(cls, raw: Mapping[str, Any], defaults: GenerationDefaults) -> Sampling:
        """From a request's JSON object, over the checkpoint's defaults; None means not given.

        `logit_bias` is an object there, as in OpenAI's API; `json_schema` may be one.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(raw) - known):
            raise InvalidRequest(f"unknown sampling field {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        given = {name: value for name, value in raw.items() if value is not None}
        stop = given.get("stop", ())
        given["stop"] = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list | tuple) else stop
        if isinstance(biases := given.get("logit_bias"), dict):
            given["logit_bias"] = tuple((_token(name), value) for name, value in biases.items())
        if isinstance(schema := given.get("json_schema"), dict | bool):
            given["json_schema"] = json.dumps(schema, ensure_ascii=False)
        values: dict[str, Any] = {**vars(defaults), **given}
        return cls(**values)


def _number(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    # Not a number is not within any bounds; a whole number may be too large for a float.
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not low <= value <= high or (above and value == low):  # type: ignore[operator]
        raise InvalidRequest(f"{name} must be a number {'above' if above else 'from'} {low:g} up to {high:g}")


def _integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < high:
        raise InvalidRequest(f"{name} must be a whole number from {low} to {high - 1}")


def _stops(stop: object) -> None:
    if not isinstance(stop, tuple) or len(stop) > MAX_STOPS:
        raise InvalidRequest(f"stop must be a string or a list of at most {MAX_STOPS} strings")
    for text in stop:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_LENGTH:
            raise InvalidRequest(f"each stop must be a string of 1 to {MAX_STOP_LENGTH} characters")


def _biases(biases: object) -> None:
    if not isinstance(biases, tuple) or len(biases) > MAX_BIASES:
        raise InvalidRequest(f"logit_bias must be an object of at most {MAX_BIASES} token ids and numbers")
    for token, bias in biases:
        _integer("each token id of logit_bias", token, 0, 1 << 31)
        _number("each number of logit_bias", bias, -100.0, 100.0)


def _token(name: object) -> int:
    if not isinstance(name, str) or not name.isdecimal() or not name.isascii():
        raise InvalidRequest(f"each name in logit_bias must be a token id, not {name!r}")
    return int(name[:12])


def _schema(schema: object) -> None:
    if not isinstance(schema, str) or len(schema) > MAX_SCHEMA_LENGTH:
        raise InvalidRequest(f"json_schema must be a JSON schema of at most {MAX_SCHEMA_LENGTH} characters")
