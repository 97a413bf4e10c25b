"""Hostile requests as JSON: to the HTTP face of a real gateway, and to the language model's reading of its inputs."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from services.gateway.openai.request import parse
from services.llama import request as llama
from tests.fakes import CONFIG
from tests.fuzz.check import Defect, Hang, Outcome, Target
from tests.fuzz.pictures import DATA_URLS
from tests.fuzz.strategies import LEAVES, NUMBERS, TEXTS, json_values, mutated
from ziya.errors import InvalidRequest, NotFound

ANSWER_SECONDS = 20.0
# What a server says that has found no fault with itself.
_STATUSES = {200, 400, 401, 404, 413, 429}
_URLS = DATA_URLS | st.sampled_from(
    [
        "http://127.0.0.1/",
        "https://[::1]/",
        "https://169.254.169.254/latest/meta-data",
        "https://user:word@127.0.0.1/",
        "https://127.0.0.1:22/",
        "https://\u2488/",
        "https://[::1",
        "https://2130706433/",
        "https:///",
        "file:///etc/passwd",
        "image-id:",
        "image-id:" + "0" * 64,
        "data:image/png;base64,iVBORw0KGgo=",
    ]
)
_VALUES = json_values(LEAVES)
_OPTIONS: dict[str, SearchStrategy[Any]] = {
    **dict.fromkeys(("temperature", "top_p", "presence_penalty", "repetition_penalty", "seed"), NUMBERS | _VALUES),
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "top_k", "n", "top_logprobs"), NUMBERS | _VALUES),
    "stop": st.lists(TEXTS, max_size=20) | TEXTS | _VALUES,
    "logit_bias": st.dictionaries(st.integers(-2, 1 << 40).map(str) | TEXTS, NUMBERS, max_size=5) | _VALUES,
    "response_format": st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "json_object", "json_schema"]) | TEXTS},
        optional={"json_schema": st.fixed_dictionaries({"name": TEXTS, "schema": _VALUES}) | _VALUES},
    ),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans() | LEAVES}) | _VALUES,
    "metadata": _VALUES,
    "logprobs": st.booleans() | LEAVES,
    "model": TEXTS | st.just("ziya-visual:x"),
}
_PARTS = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS | LEAVES}),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": _URLS | LEAVES})}),
    st.fixed_dictionaries({"type": st.just("image_id"), "image_id": st.just("0" * 64) | LEAVES}),
    _VALUES,
)
_MESSAGES = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "user", "assistant", "system", "developer", "tool"]) | LEAVES,
        "content": TEXTS | st.lists(_PARTS, max_size=4) | _VALUES,
    },
    optional={"name": TEXTS},
)
_FLOODS = [
    b"[" * 200_000,
    b'{"a":' * 50_000,
    b"\xff\xfe{}",
    b'{"model": "ziya-visual", "messages": "\\ud800"}',
    b'{"model": "ziya-visual", "model": 1, "messages": []}',
    b'{"model": "ziya-visual", "temperature": 1' + b"0" * 6000 + b', "messages": [{"role": "user", "content": "x"}]}',
    json.dumps({"model": "x" * 300_000, "messages": []}).encode(),
    json.dumps({"model": "ziya-visual", "messages": [{"role": "r" * 300_000, "content": ""}]}).encode(),
    json.dumps({"model": "ziya-visual", "f" * 300_000: 1, "messages": []}).encode(),
    json.dumps({"model": "ziya-visual", "messages": [{"role": "user", "content": "x"}] * 5000}).encode(),
    json.dumps(
        {
            "model": "ziya-visual",
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://127.0.0.1/"}}] * 500}
            ],
        }
    ).encode(),
]


@st.composite
def _bodies(draw: DrawFn) -> bytes:
    """Either the messages are hostile or the options: what is wrong first hides what is wrong behind it."""
    body: dict[str, Any] = {"model": "ziya-visual", "messages": [{"role": "user", "content": "hello"}]}
    if draw(st.booleans()):
        body["messages"] = draw(st.lists(_MESSAGES, max_size=4))
    else:
        options = draw(st.lists(st.sampled_from(sorted(_OPTIONS)), min_size=1, max_size=2, unique=True))
        body |= {name: draw(_OPTIONS[name]) for name in options}
    body |= draw(st.sampled_from([{}, {}, {"stream": True}, {"stream": 1}, {"unknown": 1}]))
    return json.dumps(body).encode()


_GOOD = json.dumps({"model": "ziya-visual", "messages": [{"role": "user", "content": "你好"}], "stop": ["a"]}).encode()
BODIES = st.one_of(_bodies(), _bodies(), mutated(_GOOD), st.binary(max_size=100), st.sampled_from(_FLOODS))


def _feed_parser(body: bytes) -> Outcome:
    try:
        parse(body)
    except InvalidRequest:
        return Outcome.REFUSED
    return Outcome.ANSWERED


def over_http(port: int) -> Callable[[bytes], Outcome]:
    """Posts a body to a gateway on this machine."""

    def feed(body: bytes) -> Outcome:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
        try:
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            answer = reply.read()
        except TimeoutError:
            raise Hang("no whole answer came") from None
        finally:
            connection.close()
        if reply.status not in _STATUSES or b"internal_error" in answer:
            raise Defect(f"{reply.status} {answer[:500]!r}")
        if reply.status == 200:
            return Outcome.ANSWERED
        error = json.loads(answer)["error"]
        if not error["message"] or len(answer) > 20_000:
            raise Defect(f"an error of {len(answer)} bytes: {answer[:200]!r}")
        return Outcome.REFUSED

    return feed


_TEXT_INPUTS = st.none() | st.lists(TEXTS.map(str.encode) | st.binary(max_size=8), max_size=4).map(
    lambda values: np.array(values, dtype=np.object_)
)
_SHAPES = st.sampled_from([(1, 4, 6), (2, 4, 6), (1, 4, 7), (0, 4, 6), (4,), (1, 1, 4, 6)])
_NUMBERS = st.sampled_from([0.0, 1.0, np.nan, np.inf])
_WIRE = st.dictionaries(
    st.sampled_from(["temperature", "top_p", "top_k", "max_tokens", "seed", "stop", "logit_bias", "logprobs", "salt"])
    | st.sampled_from(["json_schema", "ignore_eos", "deadline", "request_id", "traceparent", "adapter"])
    | TEXTS,
    _VALUES,
    max_size=4,
).map(lambda value: np.array([json.dumps(value).encode()], dtype=np.object_))
_INPUTS = st.builds(
    llama.Inputs,
    _TEXT_INPUTS | st.just(np.array([b"a", b"b"], dtype=np.object_)),
    _TEXT_INPUTS | st.just(np.array([b"ziya:tokens:x"], dtype=np.object_)),
    st.none() | st.builds(lambda shape, number: np.full(shape, number, np.float16), _SHAPES, _NUMBERS),
    _WIRE | _TEXT_INPUTS,
)


def _feed_llama(inputs: llama.Inputs) -> Outcome:
    try:
        found = llama.parse(inputs, CONFIG, 60.0)
    except (InvalidRequest, NotFound):
        return Outcome.REFUSED
    assert found.inline is None or np.isfinite(found.inline).all()
    assert np.isfinite(found.deadline)
    return Outcome.ANSWERED


TARGET = Target("request parser", BODIES, _feed_parser)
LLAMA_TARGET = Target("Triton inputs", _INPUTS, _feed_llama)


def target(port: int) -> Target:
    return Target("HTTP request", BODIES, over_http(port))
