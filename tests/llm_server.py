"""A language model's server as tests want it: OpenAI's chat API on a real socket, answers by rule, and all troubles.

    python -m tests.llm_server --port 0 --journal paid.jsonl --refuse 20 --rate-limit 7 --die-after 30

What it will not answer well is of two kinds. *Weather* comes by the order of arrival: each n-th request meets a 429, a
500, a broken connection, silence. *Content* is decided by the question itself, one in n of them by digest, so that two
builds of the same data meet the same: refusals, answers that are cut, filtered, empty, no JSON.

It bills as a server does that honours Idempotency-Key: a key that it has answered gets the same answer again, for
nothing. With a journal it remembers that after it has died. GET /counts says what was asked and what was paid.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from tests.llm_rules import answer, number

Rule = Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any] | None], Any]
REASONS = {400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests", 500: "Server Error"}
TOKEN_CHARACTERS = 4


@dataclass(frozen=True)
class Troubles:
    """Each number is "one in so many", 0 never. `die_after` paid answers the process is gone, the last one unsent."""

    rate_limit: int = 0
    error: int = 0
    close: int = 0
    cut: int = 0
    hang: int = 0
    drip: int = 0  # a byte at a time, so that no single read is late
    die_after: int = 0
    refuse: int = 0
    truncate: int = 0
    filter: int = 0
    empty: int = 0
    bad_request: int = 0
    broken: int = 0  # the first try of a question; the next ones are well
    misfit: int = 0  # the same, with JSON that fits no schema
    fenced: int = 0
    no_usage: int = 0
    retry_after: str = "0"
    delay: float = 0.0
    jitter: float = 0.0  # up to so many seconds more, by content


CONTENT = ("refuse", "truncate", "filter", "empty", "bad_request", "broken", "misfit", "fenced", "no_usage")


class LlmServer:
    """`rule` gives a text, or JSON. With `models`, others are not found; with `api_key`, others are turned away."""

    def __init__(
        self,
        rule: Rule = answer,
        troubles: Troubles | None = None,
        *,
        rules: Mapping[str, Rule] | None = None,
        models: Sequence[str] = (),
        api_key: str = "",
        journal: Path | None = None,
    ) -> None:
        self.troubles = troubles or Troubles()
        self.asked: Counter[str] = Counter()  # by Idempotency-Key, or content where there is none
        self.paid: Counter[str] = Counter()
        self.paid_contents: Counter[str] = Counter()
        self.requests = self.at_once = self.most_at_once = 0
        self.bodies: list[dict[str, Any]] = []
        self.keep_bodies = False
        self.forgetful = False  # counts nothing, so that it does not grow
        self._rule, self._rules, self._models, self._api_key = rule, rules or {}, models, api_key
        self._answers: dict[str, bytes] = {}
        self._journal = journal
        self._connections: set[asyncio.Task[None]] = set()
        self._hold = asyncio.Event()
        self._hold.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self, port: int = 0) -> Self:
        if self._journal and self._journal.is_file():
            for line in self._journal.read_text("utf-8").splitlines():
                with suppress(ValueError):  # the last one may be half a line
                    self._bill(*json.loads(line))
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", port, backlog=1024, limit=2**24)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """As a crash is seen from outside: every connection breaks, nobody listens."""
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections)
        await self._server.wait_closed()

    def hold(self) -> None:
        """Nothing is answered until `go`."""
        self._hold.clear()

    def go(self) -> None:
        self._hold.set()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def counts(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "most_at_once": self.most_at_once,
            "asked": dict(self.asked),
            "paid": dict(self.paid),
            "paid_contents": dict(self.paid_contents),
        }

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        this = asyncio.current_task()
        assert this
        self._connections.add(this)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if not await self._request(head[0].split()[1], headers, body, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # whoever closes, breaks it off, or is a rule that breaks it
        finally:
            self._connections.discard(this)
            writer.transport.abort()

    async def _request(self, path: str, headers: Mapping[str, str], body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection is to be kept."""
        if path == "/counts":
            return await _send(writer, 200, json.dumps(self.counts()).encode())
        if path.endswith("/models"):
            listed = [{"id": name, "object": "model"} for name in self._models or ["any"]]
            return await _send(writer, 200, json.dumps({"object": "list", "data": listed}).encode())
        if not path.endswith("/v1/chat/completions"):
            return await _send(writer, 404, _error("no such path"))
        if self._api_key and headers.get("authorization") != f"Bearer {self._api_key}":
            return await _send(writer, 401, _error("Incorrect API key provided"))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._chat(headers, json.loads(body), writer)
        finally:
            self.at_once -= 1

    async def _chat(self, headers: Mapping[str, str], body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        self.requests += 1
        number_here, troubles = self.requests, self.troubles
        content = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        key = headers.get("idempotency-key", content)
        if not self.forgetful:
            self.asked[key] += 1
        if self.keep_bodies:
            self.bodies.append(body)
        if self._models and body["model"] not in self._models:
            return await _send(writer, 404, _error(f"The model {body['model']} does not exist"))
        met = {
            name
            for name in ("rate_limit", "error", "close", "cut", "hang", "drip")
            if _each(troubles, name, number_here)
        }
        if "rate_limit" in met:
            return await _send(writer, 429, _error("slow down"), f"Retry-After: {troubles.retry_after}\r\n")
        if "error" in met:
            return await _send(writer, 500, _error("something broke"))
        if "close" in met:
            return False
        if troubles.delay or troubles.jitter:
            await asyncio.sleep(troubles.delay + troubles.jitter * number(content, 100) / 100)
        await self._hold.wait()
        status, sent = self._answer(key, content, body)
        if troubles.die_after and len(self.paid) >= troubles.die_after:
            os._exit(9)
        if "hang" in met:
            await asyncio.sleep(3600)
        if "cut" in met:
            writer.write(_head(200, len(sent)) + sent[: len(sent) // 2])
            await writer.drain()
            return False
        if "drip" in met:
            for byte in _head(200, len(sent)) + sent:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
        return await _send(writer, status, sent)

    def _answer(self, key: str, content: str, body: dict[str, Any]) -> tuple[int, bytes]:
        """Status and body. Pays, unless the key was answered before."""
        if key in self._answers:
            return 200, self._answers[key]
        question = json.dumps(body["messages"], sort_keys=True)
        met = {name for name in CONTENT if (each := getattr(self.troubles, name)) and not number(name + question, each)}
        if "bad_request" in met:
            return 400, _error("I cannot read this")
        rule = self._rules.get(body["model"], self._rule)
        sent = json.dumps(self._completion(rule, body, met))
        if not self.forgetful:
            self._bill(key, content, sent)
        if self._journal:
            with self._journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, content, sent]) + "\n")
        return 200, sent.encode()

    def _bill(self, key: str, content: str, sent: str) -> None:
        self._answers[key] = sent.encode()
        self.paid[key] += 1
        self.paid_contents[content] += 1

    def _completion(self, rule: Rule, body: dict[str, Any], met: set[str]) -> dict[str, Any]:
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        said = rule(body["messages"], schema)
        text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        finish, first = "stop", not body.get("seed")
        if "refuse" in met:
            message |= {"content": None, "refusal": "I cannot help with that."}
        elif "filter" in met:
            message, finish = message | {"content": ""}, "content_filter"
        elif "truncate" in met:
            message, finish = message | {"content": text[: len(text) // 2]}, "length"
        elif "empty" in met:
            message["content"] = ""
        elif schema and "broken" in met and first:
            message["content"] = text[:-1]
        elif schema and "misfit" in met and first:
            message["content"] = "[17]"
        elif schema and "fenced" in met:
            message["content"] = f"```json\n{text}\n```"
        found = {"id": "chat-1", "object": "chat.completion", "created": 0, "model": body["model"]}
        found["choices"] = [{"index": 0, "message": message, "finish_reason": finish}]
        if "no_usage" not in met:
            prompt, answered = len(json.dumps(body["messages"])) // TOKEN_CHARACTERS, len(text) // TOKEN_CHARACTERS + 1
            answered = min(answered, body.get("max_tokens") or answered)
            found["usage"] = {"prompt_tokens": prompt, "completion_tokens": answered, "total_tokens": prompt + answered}
        return found


def _each(troubles: Troubles, name: str, count: int) -> bool:
    each = getattr(troubles, name)
    return bool(each) and count % each == 0


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "error", "code": None}}).encode()


def _head(status: int, length: int, more: str = "") -> bytes:
    reason = REASONS.get(status, "OK")
    kind = f"Content-Type: application/json\r\nContent-Length: {length}\r\n"
    return f"HTTP/1.1 {status} {reason}\r\n{kind}{more}\r\n".encode()


async def _send(writer: asyncio.StreamWriter, status: int, body: bytes, more: str = "") -> bool:
    writer.write(_head(status, len(body), more) + body)
    await writer.drain()
    return True


def named(name: str) -> Rule:
    """`module:function`."""
    module, _, function = name.partition(":")
    rule: Rule = getattr(importlib.import_module(module), function)
    return rule


def arguments(troubles: Troubles) -> list[str]:
    """As the command line takes them."""
    return [word for name, value in asdict(troubles).items() for word in (f"--{name.replace('_', '-')}", str(value))]


async def _main(options: argparse.Namespace) -> None:
    troubles = Troubles(**{field.name: getattr(options, field.name) for field in fields(Troubles)})
    rules = {model: named(rule) for model, _, rule in (text.partition("=") for text in options.model_rule)}
    server = LlmServer(named(options.rule), troubles, rules=rules, models=options.model, journal=options.journal)
    await server.start(options.port)
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0: a free one; it is printed")
    parser.add_argument("--rule", default="tests.llm_rules:answer", help="module:function")
    parser.add_argument("--model-rule", action="append", default=[], help="model=module:function")
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--journal", type=Path)
    for field in fields(Troubles):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    with suppress(KeyboardInterrupt):
        asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
