"""The whole system with real processes: both languages, many at once, and what happens when a part is killed."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from tokenizers import Tokenizer

from tests.chart_metrics import asked, told
from tests.helm import CHART, needs_helm
from tests.reference import reference_generate
from tests.stack import Stack, running, ziya

pytestmark = [pytest.mark.xdist_group("stack"), pytest.mark.timeout(240)]

CHINESE, ENGLISH = "这是什么？", "What is this?"
RESTART_SECONDS = 90


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("home"), tiny_checkpoint) as stack:
        yield stack


@dataclass(frozen=True)
class Outcome:
    """How one request ended: with an answer and its reason, or with an error of ours (status, sentence)."""

    text: str = ""
    finish_reason: str = ""
    usage: dict[str, Any] | None = None
    status: int = 200
    error: str = ""

    @property
    def is_answer(self) -> bool:
        return self.finish_reason in ("stop", "length") and not self.error

    @property
    def is_clear(self) -> bool:
        """An answer, or an error whose sentence is one that a person can read."""
        return self.is_answer or (len(self.error) > 10 and "Traceback" not in self.error)

    @property
    def cached(self) -> int:
        assert self.usage is not None
        return int(self.usage["prompt_tokens_details"]["cached_tokens"])


def pixels(seed: int, side: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def data_url(picture: np.ndarray) -> str:
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def body(picture: np.ndarray, question: str, **options: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": data_url(picture)}}, {"type": "text", "text": question}]
    request = {"model": "ziya-visual", "messages": [{"role": "user", "content": parts}], "temperature": 0}
    return {**request, "max_tokens": 12, "stream": True, "stream_options": {"include_usage": True}, **options}


async def ask(
    client: httpx.AsyncClient, picture: np.ndarray, question: str, begun: asyncio.Event | None = None, **options: Any
) -> Outcome:
    """One streamed request; `begun` is set by its first text. A broken HTTP exchange fails the test."""
    text, reason, usage = "", "", None
    async with client.stream("POST", "/v1/chat/completions", json=body(picture, question, **options)) as reply:
        if reply.is_error:
            message = json.loads(await reply.aread())["error"]["message"]
            return Outcome(status=reply.status_code, error=message)
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                return Outcome(text, reason, usage, error=event["error"]["message"])
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                if text and begun:
                    begun.set()
                reason = choice["finish_reason"] or reason
    return Outcome(text, reason, usage)


def client_of(stack: Stack) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=stack.url, timeout=RESTART_SECONDS, trust_env=False)


def plain_text(checkpoint: Path, tokens: Sequence[int]) -> str:
    """The text of tokens, byte by byte: `Tokenizer.decode` spoils whole runs in which one byte does not fit."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "llama" / "tokenizer.json"))
    data = b""
    for name in map(tokenizer.id_to_token, tokens):
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", name)
        data += bytes.fromhex(byte[1]) if byte else name.replace("\u2581", " ").encode()
    return data.decode(errors="replace")


async def again_answering(client: httpx.AsyncClient, seed: int) -> Outcome:
    """The first answer after a disturbance; refusals on the way must be clear."""
    async with asyncio.timeout(RESTART_SECONDS):
        while not (outcome := await ask(client, pixels(seed), ENGLISH)).is_answer:
            assert outcome.is_clear
    return outcome


@pytest.mark.parametrize("question", [CHINESE, ENGLISH])
async def test_an_answer_through_the_whole_stack_is_the_references(
    stack: Stack, tiny_checkpoint: Path, question: str
) -> None:
    picture = pixels(1)
    async with client_of(stack) as client:
        outcome = await ask(client, picture, question)
    expected = reference_generate(tiny_checkpoint, [picture], ["", f"<human>:{question}\n<bot>:"], 12)
    assert outcome.text == plain_text(tiny_checkpoint, expected)
    assert outcome.usage is not None
    assert outcome.usage["completion_tokens"] == len(expected)


async def test_a_known_picture_is_not_computed_again(stack: Stack) -> None:
    async with client_of(stack) as client:
        first = await ask(client, pixels(2), CHINESE)
        second = await ask(client, pixels(2), ENGLISH)
        third = await ask(client, pixels(2), CHINESE)
    assert (first.cached, third.text) == (0, first.text)
    assert second.cached == third.cached == 4


async def test_the_pace_of_an_answer_is_told_token_by_token(stack: Stack) -> None:
    async def tokens() -> float:
        lines = (await client.get("/metrics")).text.splitlines()
        [value] = [line.split()[1] for line in lines if line.startswith("ziya_gateway_inter_token_seconds_count ")]
        return float(value)

    async with client_of(stack) as client:
        before = await tokens()
        assert (await ask(client, pixels(2), ENGLISH, max_tokens=100, ignore_eos=True)).is_answer
        assert 0 < await tokens() - before < 100  # all but those of the first response


async def test_the_official_client_works_unchanged(stack: Stack) -> None:
    content = body(pixels(3), CHINESE)["messages"]
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none") as client:
        whole = await client.chat.completions.create(model="ziya-visual", messages=content, temperature=0, max_tokens=8)
        stream = await client.chat.completions.create(
            model="ziya-visual", messages=content, temperature=0, max_tokens=8, stream=True
        )
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == whole.choices[0].message.content


def test_ask_finds_the_running_stack_and_streams(stack: Stack, tmp_path: Path) -> None:
    Image.fromarray(pixels(4)).save(tmp_path / "noise.png")
    home = {"XDG_STATE_HOME": str(stack.state.parents[1])}
    words = ("ask", str(tmp_path / "noise.png"), CHINESE, "--temperature", "0", "--max-tokens", "8")
    plain = ziya(*words, "--stats", env=home)
    assert plain.returncode == 0, plain.stderr
    assert "first token" in plain.stdout
    assert "tokens/s" in plain.stdout
    structured = ziya(*words, "--json", env=home)
    report = json.loads(structured.stdout)
    assert plain.stdout.startswith(report["answer"].split("\n")[0])
    assert report["usage"]["image_tokens"] == 4
    assert report["finish_reason"] == "length"


def test_ask_with_two_pictures(stack: Stack, tmp_path: Path) -> None:
    files = [str(tmp_path / f"{seed}.png") for seed in (5, 6)]
    for seed, name in zip((5, 6), files, strict=True):
        Image.fromarray(pixels(seed)).save(name)
    report = json.loads(ziya("ask", *files, ENGLISH, "--url", stack.url, "--json", "--max-tokens", "4").stdout)
    assert report["usage"]["image_tokens"] == 8


def test_ask_shows_the_servers_refusal_as_a_sentence(stack: Stack, tmp_path: Path) -> None:
    Image.fromarray(pixels(7)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    result = ziya("ask", str(tmp_path / "cut.png"), ENGLISH, "--url", stack.url)
    assert result.returncode == 1
    assert "the image is damaged or cut off" in result.stderr


@pytest.mark.parametrize(
    ("victim", "first_seed"),
    [
        ("services.vision.app", 100),
        ("services.qformer.app", 200),
        ("bin/tritonserver", 300),
        ("triton_python_backend_stub", 400),
    ],
)
async def test_twenty_at_once_while_a_process_is_killed(stack: Stack, victim: str, first_seed: int) -> None:
    """Each request ends in an answer or a clear error, and the restarted stack answers."""
    begun = asyncio.Event()
    async with client_of(stack) as client:

        async def one(number: int) -> Outcome:
            question = (CHINESE, ENGLISH)[number % 2]
            return await ask(client, pixels(first_seed + number), question, begun, max_tokens=100, ignore_eos=True)

        async def kill() -> None:
            await begun.wait()
            stack.kill(victim)

        *outcomes, _ = await asyncio.gather(*(one(number) for number in range(20)), kill())
        assert all(outcome.is_clear for outcome in outcomes), outcomes
        if "triton" not in victim:  # whose death ends what has begun; all others can wait for the encoders
            assert all(outcome.is_answer for outcome in outcomes), outcomes
        assert (await again_answering(client, first_seed + 20)).is_answer
    assert stack.find(victim).is_running()


async def test_a_killed_gateway_comes_back_at_its_address(stack: Stack) -> None:
    stack.kill("services.gateway.app")
    transport = httpx.AsyncHTTPTransport(retries=100)  # of connecting, with growing pauses
    async with httpx.AsyncClient(base_url=stack.url, timeout=RESTART_SECONDS, transport=transport) as client:
        assert (await again_answering(client, 500)).is_answer


async def test_answers_come_without_redis_and_use_it_again_when_it_is_back(stack: Stack) -> None:
    async with client_of(stack) as client:
        stack.kill("redis-server")
        outcomes = await asyncio.gather(*(ask(client, pixels(900 + n), CHINESE) for n in range(20)))
        assert all(outcome.is_answer for outcome in outcomes), outcomes
        await until_cached(client, 950)


async def test_a_redis_that_hangs_costs_no_answer(stack: Stack) -> None:
    redis = stack.find("redis-server")
    async with client_of(stack) as client:
        redis.suspend()
        try:
            outcome = await ask(client, pixels(960), ENGLISH)
        finally:
            redis.resume()
        assert outcome.is_answer, outcome.error
        await until_cached(client, 970)


async def until_cached(client: httpx.AsyncClient, seed: int) -> None:
    """Asks about one picture until its tokens come from the bus."""
    async with asyncio.timeout(RESTART_SECONDS):
        while not (await ask(client, pixels(seed), ENGLISH)).cached:
            pass


async def test_two_hundred_pictures_at_once_are_answered_or_politely_refused(stack: Stack) -> None:
    """By the real stages. None vanishes, none outlasts its deadline, and no room is left taken."""
    terms = {"limits": httpx.Limits(max_connections=200), "headers": {"X-Request-Timeout": "60"}}
    async with httpx.AsyncClient(base_url=stack.url, timeout=70, trust_env=False, **terms) as client:
        questions = [ask(client, pixels(5000 + number), ENGLISH, max_tokens=3) for number in range(200)]
        outcomes = await asyncio.gather(*questions)
        answered = [outcome for outcome in outcomes if outcome.is_answer]
        assert len(answered) >= 128
        assert {outcome.status for outcome in outcomes if not outcome.is_answer} <= {429}
        assert all(outcome.is_clear for outcome in outcomes)
        page = (await client.get("/metrics")).text
    for name in ("in_flight", "waiting", "images_in_flight", "tokens_in_flight"):
        assert f"ziya_gateway_{name} 0.0" in page


def test_the_socket_of_redis_is_private(stack: Stack) -> None:
    socket = stack.addresses["redis"].removeprefix("unix://")
    assert stat.S_IMODE(os.stat(socket).st_mode) == 0o700


def test_the_charts_own_test_gets_its_two_answers(stack: Stack) -> None:
    """What `helm test` runs, beside the picture that it shows."""
    argv = [sys.executable, str(CHART / "files" / "ask.py"), str(CHART / "files" / "example.webp")]
    environment = {"PATH": os.environ["PATH"], "GATEWAY": stack.url, "API_KEYS": "one,two"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if line] == [CHINESE, "What"]


@needs_helm
def test_scalers_alerts_and_dashboards_ask_for_what_the_programs_tell(stack: Stack) -> None:
    """The operator's numbers are left to its own tests: `ziya up` does not start it."""
    pages = [f"http://127.0.0.1:{port}/metrics" for port in metrics_ports(stack)]
    names = {name for page in pages for name in told(httpx.get(page).text)}
    missing = {name: where for name, where in asked().items() if name not in names}
    assert {name for name in missing if not name.startswith("ziya_operator_")} == set()


def metrics_ports(stack: Stack) -> list[str]:
    """As the Python services announced them when they last started, and as Triton was told."""
    announced = []
    for name in ("gateway", "vision", "qformer"):
        lines = (stack.state / "logs" / f"{name}.log").read_text("utf-8").splitlines()
        announced.append(json.loads([line for line in lines if '"event": "listening"' in line][-1])["metrics"])
    [triton] = [word for word in stack.find("tritonserver").cmdline() if word.startswith("--metrics-port=")]
    return [*map(str, announced), triton.partition("=")[2]]
