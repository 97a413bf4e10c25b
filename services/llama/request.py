"""From a request as Triton brings it (arrays of bytes, fp16 numbers) to what the engine takes, checked."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from services.llama.engine.sampling import Sampling
from ziya import tracing
from ziya.checkpoint import CheckpointConfig
from ziya.errors import InvalidRequest

Array = npt.NDArray[Any]
MAX_IMAGES = 64
MAX_DEADLINE = 1e12
KEY_PREFIX = "ziya:tokens:"


@dataclass(frozen=True)
class Inputs:
    """The model's inputs as numpy gives them; None where the request has none."""

    prompt: Array | None
    image_keys: Array | None = None
    visual_tokens: Array | None = None
    sampling: Array | None = None


@dataclass(frozen=True)
class Request:
    """Checked: `len(texts)` is one more than the images, which come by key or, when Redis is down, inline."""

    texts: tuple[str, ...]
    keys: tuple[str, ...]
    inline: Array | None
    sampling: Sampling
    deadline: float
    request_id: str
    salt: bytes = b""
    adapter: str = ""
    traceparent: str = ""


def parse(inputs: Inputs, config: CheckpointConfig, timeout: float) -> Request:
    """Raises InvalidRequest naming the input. Without a deadline the request has `timeout` seconds."""
    texts = _strings("prompt", inputs.prompt)
    if not texts:
        raise InvalidRequest("prompt must hold at least one text")
    keys, inline = _strings("image_keys", inputs.image_keys), _inline(inputs.visual_tokens, config)
    if not all(key.startswith(KEY_PREFIX) for key in keys):
        raise InvalidRequest(f"every one of image_keys must begin with {KEY_PREFIX}")
    if keys and inline is not None:
        raise InvalidRequest("give image_keys or visual_tokens, not both")
    images = len(keys) if inline is None else len(inline)
    if images != len(texts) - 1:
        raise InvalidRequest(f"a prompt of {len(texts)} texts goes with {len(texts) - 1} images, but {images} came")
    if images > MAX_IMAGES:
        raise InvalidRequest(f"at most {MAX_IMAGES} images, not {images}")
    options = _options(inputs.sampling)
    deadline, request_id = _deadline(options.pop("deadline", None), timeout), options.pop("request_id", None)
    around = tracing.accept(options.pop("traceparent", None))
    salt, adapter = _text("salt", options.pop("salt", None)), _text("adapter", options.pop("adapter", None))
    sampling = Sampling.parse(options, config.generation)
    name = str(request_id) if request_id else ""
    return Request(texts, keys, inline, sampling, deadline, name, salt.encode(), adapter, around)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str | None):
        raise InvalidRequest(f"{name} must be a string")
    return value or ""


def _strings(name: str, array: Array | None) -> tuple[str, ...]:
    if array is None:
        return ()
    if array.ndim != 1:
        raise InvalidRequest(f"{name} must have one dimension, not shape {list(array.shape)}")
    try:
        return tuple(value.decode() if isinstance(value, bytes) else str(value) for value in array)
    except UnicodeDecodeError:
        raise InvalidRequest(f"{name} must be UTF-8") from None


def _inline(array: Array | None, config: CheckpointConfig) -> Array | None:
    if array is None:
        return None
    wanted = (config.queries, config.qformer_width)
    if array.ndim != 3 or array.shape[1:] != wanted:
        raise InvalidRequest(f"visual_tokens must be [images, {wanted[0]}, {wanted[1]}], not {list(array.shape)}")
    with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, and is refused as that
        half = np.asarray(array, dtype=np.float16)
    if not np.isfinite(half).all():
        raise InvalidRequest("visual_tokens hold values that are not finite")
    return half


def _options(array: Array | None) -> dict[str, Any]:
    values = _strings("sampling", array)
    if not values or not values[0]:
        return {}
    if len(values) > 1:
        raise InvalidRequest("sampling must be one JSON object")
    try:
        options = json.loads(values[0])
    except (ValueError, RecursionError):
        raise InvalidRequest("sampling is not valid JSON") from None
    if not isinstance(options, dict):
        raise InvalidRequest("sampling must be a JSON object")
    return options


def _deadline(value: object, timeout: float) -> float:
    if value is None:
        return time.time() + timeout
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_DEADLINE:
        raise InvalidRequest("deadline must be a time in unix seconds")
    return float(value)
