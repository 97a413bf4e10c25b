"""`ziya eval` of a server with OpenAI's API: many questions at once, going on after a kill, what is no plain answer."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.llm_server import LlmServer, Troubles
from tests.openai_server import OpenAIServer, Raw, Script, openai_server
from tests.stack import running
from tests.test_eval_command import ASKED, EXAMPLES, ROOT, TINY, command, records, results, run

__all__ = ["records"]  # a fixture


@dataclass
class Namer:
    """Says of each picture what its file is called. `answer` is a hook of the server."""

    server: OpenAIServer
    finish: str = "stop"
    refused: Sequence[str] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        entries = json.loads((EXAMPLES / "examples.json").read_text("utf-8"))
        self.names = {
            hashlib.sha256((EXAMPLES / one["file"]).read_bytes()).hexdigest(): one["name_en"] for one in entries
        }

    def named(self, content: Sequence[Mapping[str, Any]]) -> str:
        picture, question = content
        assert question["text"] == "What is this?"
        kind, _, data = picture["image_url"]["url"].partition(";base64,")
        assert kind == "data:image/webp"
        return self.names[hashlib.sha256(base64.b64decode(data)).hexdigest()]

    async def answer(self, body: dict[str, Any]) -> None:
        name = self.named(body["messages"][0]["content"])
        refusal = "I will not look at it" if name in self.refused else None
        message = {"role": "assistant", "content": None if refusal else f"{name}.", "refusal": refusal}
        completion = {
            **{"id": "1", "object": "chat.completion", "created": 1, "model": "fake-model"},
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
        }
        self.server.scripts = [Script((Raw(json.dumps(completion).encode()),), 200, "application/json", "counted")]


def asking(server: OpenAIServer | LlmServer, records: Path, folder: Path) -> list[str]:
    how = [
        "--task",
        "exact",
        "--field",
        "caption",
        "--language",
        "en",
        "--prompt",
        "en=What is this?",
        "--data",
        records,
    ]
    return command(server.url, *how, "--store", folder / "store", "--json", folder / "found.json", "--concurrency", 8)


async def asked(words: Sequence[str], status: int = 0) -> str:
    """What it printed. Fails when it ends otherwise."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*words, cwd=ROOT, stdout=pipe, stderr=pipe)
    try:
        out, error = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert child.returncode == status, error.decode()
    return out.decode()


async def test_questions_overlap_and_never_more_than_asked_for(records: Path, tmp_path: Path) -> None:
    async with openai_server() as server:
        namer, full = Namer(server), asyncio.Event()

        async def before(body: dict[str, Any]) -> None:
            # The first eight are answered only when all eight are there.
            if server.in_flight == 8:
                full.set()
            await full.wait()
            await namer.answer(body)

        server.before = before
        printed = await asked(asking(server, records, tmp_path))
        assert server.most_in_flight == 8
    (result,) = results(tmp_path)
    assert (result["items"], result["metrics"]["accuracy"]) == (26, 1.0)
    assert len(server.bodies) == 26
    assert {body["model"] for body in server.bodies} == {"fake-model"}
    assert {(body["temperature"], body["max_tokens"]) for body in server.bodies} == {(0.0, 64)}
    assert printed.startswith("fake-model\n")


def calls(path: Path) -> set[str]:
    """The digests that the ledger has a call of."""
    if not path.is_file():
        return set()
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
        try:
            return {digest.hex() for (digest,) in file.execute("SELECT digest FROM calls")}
        except sqlite3.OperationalError:
            return set()  # the table is not there yet


async def test_a_cut_answer_is_scored_and_a_refusal_is_told(records: Path, tmp_path: Path) -> None:
    async with openai_server() as server:
        server.before = Namer(server, finish="length", refused=("lemon", "badger")).answer
        printed = await asked(asking(server, records, tmp_path))
    (result,) = results(tmp_path)
    assert (result["items"], result["without_answer"]) == (26, 2)
    assert result["metrics"]["accuracy"] == pytest.approx(24 / 26)
    assert "without an answer, English: 2, such as refused: I will not look at it" in printed


async def test_a_wrong_key_stops_at_once(records: Path, tmp_path: Path) -> None:
    async with openai_server() as server:
        body = json.dumps({"error": {"message": "no such key"}}).encode()
        server.scripts = [Script((Raw(body),), 401, "application/json", "counted")]
        words = asking(server, records, tmp_path)
        await asked(words, status=42)
        assert len(server.bodies) <= 16


async def test_weather_costs_no_answer_and_pays_none_twice(records: Path, tmp_path: Path) -> None:
    """Every third request meets a 429, every eighth a broken connection."""
    with_names = Namer(OpenAIServer([]))

    def rule(messages: Sequence[Mapping[str, Any]], schema: object) -> str:
        return with_names.named(messages[0]["content"])

    async with LlmServer(rule, Troubles(rate_limit=3, close=8)) as server:
        await asked(asking(server, records, tmp_path))
        assert len(server.paid) == server.paid.total() == 26
        assert server.requests > 26
    (result,) = results(tmp_path)
    assert (result["items"], result["without_answer"], result["metrics"]["accuracy"]) == (26, 0, 1.0)


@pytest.mark.slow
def test_a_running_stack_answers_as_the_checkpoint_does(records: Path, tmp_path: Path) -> None:
    """Gateway, vision, Redis, Q-Former and Triton against this process, answer by answer."""
    how = ["--task", "exact", "--field", "caption", "--data", records, *ASKED, "--store", tmp_path / "store"]
    with running(tmp_path / "home", TINY) as stack:
        run(stack.url, *how, "--predictions", tmp_path / "stack.jsonl", "--concurrency", 4)
    run(TINY, *how, "--predictions", tmp_path / "here.jsonl", "--threads", 1)
    there, here = (
        [json.loads(line) for line in (tmp_path / name).read_text("utf-8").splitlines()]
        for name in ("stack.jsonl", "here.jsonl")
    )
    assert len(here) == 52
    assert {(one["language"], one["key"]): one["answer"] for one in there} == {
        (one["language"], one["key"]): one["answer"] for one in here
    }
