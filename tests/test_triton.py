"""The LLaMA in a real Triton server, over its own HTTP and gRPC."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from tokenizers import Tokenizer
from tritonclient.grpc import InferInput, aio

from tests.certificates import Authority
from tests.redis_server import RedisServer
from tests.reference import generate_from_tokens
from tests.triton_server import MODEL, Piece, TritonClient, TritonServer, keys
from ziya.bus import Bus
from ziya.checkpoint import read_config
from ziya.errors import InvalidImage
from ziya.keys import left_key
from ziya.tls import Identity
from ziya.wire import Stage, pack

GREEDY = {"temperature": 0, "max_tokens": 24, "ignore_eos": True}
ENDLESS = {"temperature": 0, "max_tokens": 500, "ignore_eos": True}
QUESTION = ["<human>:这是什么?\n<bot>:"]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("r"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def triton(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, redis: RedisServer
) -> Iterator[TritonServer]:
    fast = {"ZIYA_LLAMA_METRICS_INTERVAL": "0.02", "ZIYA_LLAMA_CANCEL_INTERVAL": "0.02", "ZIYA_LLAMA_MAX_RUNNING": "8"}
    server = TritonServer(tmp_path_factory.mktemp("triton"), tiny_checkpoint, redis.url, **fast)
    try:
        yield server.wait()
    finally:
        server.stop()


@pytest.fixture
async def client(triton: TritonServer) -> AsyncIterator[TritonClient]:
    client = TritonClient(triton)
    yield client
    await client.close()


@pytest.fixture
async def bus(redis: RedisServer) -> AsyncIterator[Bus]:
    bus = Bus(redis.url)
    yield bus
    await bus.close()


def text_of(pieces: list[Piece]) -> str:
    assert not any(piece.error for piece in pieces), pieces
    assert [bool(piece.finish_reason) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    return "".join(piece.text for piece in pieces)


def expected_text(checkpoint: Path, texts: list[str], tokens: list[np.ndarray] | None = None, count: int = 24) -> str:
    ids = generate_from_tokens(checkpoint, tokens or [], texts, count, ignore_eos=True)
    tokenizer = Tokenizer.from_file(str(checkpoint / "llama" / "tokenizer.json"))
    return decode_bytes(tokenizer, ids)


def decode_bytes(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Random weights speak broken UTF-8, which the tokenizer replaces by runs, and a stream must by characters."""
    data = b""
    for number in ids:
        piece = tokenizer.id_to_token(number)
        if number > 2:
            data += bytes([int(piece[3:5], 16)]) if piece.startswith("<0x") else piece.replace("▁", " ").encode()
    return data.decode(errors="replace")


def visual(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, 32)).astype(np.float16)


async def until_metric(triton: TritonServer, name: str, value: float) -> None:
    while triton.metric(name) != value:
        await asyncio.sleep(0.02)


async def test_plain_http_streams_with_a_prompt_alone(triton: TritonServer) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(
            f"{triton.http}/v2/models/{MODEL}/generate_stream", json={"prompt": "<human>:hello\n<bot>:"}
        )
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1]["finish_reason"] in ("stop", "length")
    usage = json.loads(events[-1]["usage"])
    assert 0 < usage["completion_tokens"] <= 16  # the checkpoint's own limit
    assert all(not event["finish_reason"] for event in events[:-1])


async def test_greedy_is_transformers(client: TritonClient, tiny_checkpoint: Path) -> None:
    pieces = await client.ask(QUESTION, GREEDY)
    assert text_of(pieces) == expected_text(tiny_checkpoint, QUESTION)
    assert pieces[-1].finish_reason == "length"
    usage = pieces[-1].usage
    assert usage is not None
    assert (usage["completion_tokens"], usage["image_tokens"]) == (24, 0)
    assert sum(piece.tokens for piece in pieces) == 24
    assert set(usage) == {
        *("prompt_tokens", "image_tokens", "cached_tokens", "completion_tokens"),
        *("visual_wait_seconds", "queue_seconds", "prefill_seconds", "decode_seconds"),
    }


async def test_nvidias_own_client_streams(triton: TritonServer, tiny_checkpoint: Path) -> None:
    inputs = [InferInput("prompt", [1], "BYTES"), InferInput("sampling", [1], "BYTES")]
    inputs[0].set_data_from_numpy(keys(QUESTION))
    inputs[1].set_data_from_numpy(keys([json.dumps(GREEDY)]))

    async def requests() -> AsyncIterator[dict[str, object]]:
        yield {"model_name": MODEL, "inputs": inputs}

    text = ""
    async with aio.InferenceServerClient(triton.grpc) as client:
        async for result, error in client.stream_infer(requests()):
            assert error is None
            text += result.as_numpy("text")[0].decode()
            if result.as_numpy("finish_reason")[0]:
                break
    assert text == expected_text(tiny_checkpoint, QUESTION)


async def test_images_come_inline_or_over_the_bus(client: TritonClient, bus: Bus, tiny_checkpoint: Path) -> None:
    tokens, texts = [visual(1), visual(2)], ["一", "<human>:two", " pictures\n<bot>:"]
    expected = expected_text(tiny_checkpoint, texts, tokens)
    inline = await client.ask(texts, GREEDY, visual_tokens=np.stack(tokens))
    assert text_of(inline) == expected
    assert inline[-1].usage is not None
    assert inline[-1].usage["image_tokens"] == 8

    names = ["ziya:tokens:one", "ziya:tokens:two"]
    waiting = asyncio.create_task(client.ask(texts, GREEDY, image_keys=keys(names)))
    fingerprint = read_config(tiny_checkpoint).fingerprints["qformer"]
    for name, array in zip(names, tokens, strict=True):
        await bus.deliver(name, pack(array, stage=Stage.TOKENS, fingerprint=fingerprint), 60)
    assert text_of(await waiting) == expected
    assert text_of(await client.ask(texts, GREEDY, image_keys=keys(names))) == expected


async def test_an_error_announced_on_the_bus_reaches_the_client(client: TritonClient, bus: Bus) -> None:
    waiting = asyncio.create_task(client.ask(["", "x"], GREEDY, image_keys=keys(["ziya:tokens:bad"])))
    await bus.announce("ziya:tokens:bad", InvalidImage("the picture is torn"))
    assert [piece.error for piece in await waiting] == ["InvalidImage: the picture is torn"]


async def test_tokens_of_other_weights_are_not_used(client: TritonClient, bus: Bus) -> None:
    await bus.put("ziya:tokens:alien", pack(visual(), stage=Stage.TOKENS, fingerprint="0" * 64), 60)
    (piece,) = await client.ask(["", "x"], GREEDY, image_keys=keys(["ziya:tokens:alien"]))
    assert piece.error.startswith("VisualTokensSpoilt: ")
    assert "other weights" in piece.error


@pytest.mark.parametrize(
    ("texts", "sampling", "error"),
    [
        (["a"], {"temprature": 1}, "InvalidRequest: unknown sampling field temprature"),
        (["a"], {"max_tokens": 0}, "InvalidRequest: max_tokens"),
        (["a"], {"deadline": "soon"}, "InvalidRequest: deadline"),
        (["a", "b"], {}, "InvalidRequest: a prompt of 2 texts goes with 1 images, but 0 came"),
        ([""], {}, "InvalidRequest: the prompt is empty"),
        (["a" * 600], {}, "PromptTooLong: the prompt takes 600 positions"),
        (["a"], {"deadline": 1.0}, "DeadlineExceeded"),
    ],
)
async def test_a_wrong_request_ends_with_a_sentence(
    client: TritonClient, texts: list[str], sampling: dict[str, object], error: str
) -> None:
    (piece,) = await client.ask(texts, sampling)
    assert piece.error.startswith(error)


async def test_wrong_shapes_and_missing_inputs_end_the_stream(client: TritonClient) -> None:
    (wrong,) = await client.ask(["", "x"], GREEDY, visual_tokens=np.zeros((1, 4, 31), np.float16))
    assert wrong.error == "InvalidRequest: visual_tokens must be [images, 4, 32], not [1, 4, 31]"
    (flat,) = await client.ask(["", "x"], GREEDY, visual_tokens=np.zeros((4, 32), np.float16))
    assert "visual_tokens" in flat.error
    (infinite,) = await client.ask(["", "x"], GREEDY, visual_tokens=np.full((1, 4, 32), np.inf, np.float16))
    assert "not finite" in infinite.error
    (both,) = await client.ask(
        ["", "x"], GREEDY, visual_tokens=np.zeros((1, 4, 32), np.float16), image_keys=keys(["ziya:tokens:k"])
    )
    assert "not both" in both.error
    (foreign,) = await client.ask(["", "x"], GREEDY, image_keys=keys(["ziya:ready"]))
    assert foreign.error.startswith("InvalidRequest: every one of image_keys must begin with ziya:tokens:")


async def test_a_request_ends_at_its_deadline(client: TritonClient, triton: TritonServer) -> None:
    before = triton.metric("ziya_llama_expired_total")
    deadline = {**GREEDY, "deadline": time.time() + 0.2}
    pieces = await client.ask(["", "x"], deadline, image_keys=keys(["ziya:tokens:never"]))
    assert pieces[-1].error.startswith("DeadlineExceeded: ")
    await until_metric(triton, "ziya_llama_expired_total", before + 1)


async def test_a_client_that_goes_away_frees_its_slot(client: TritonClient, triton: TritonServer) -> None:
    """The tiny model is quick: many requests, so that they are still waiting and running when they are given up."""
    before = triton.metric("ziya_llama_cancelled_total")
    tasks = [asyncio.create_task(client.ask(QUESTION, ENDLESS)) for _ in range(40)]
    tasks.append(asyncio.create_task(client.ask(["", "x"], GREEDY, image_keys=keys(["ziya:tokens:later"]))))
    await until_metric(triton, "ziya_llama_waiting_for_images", 1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until_metric(triton, "ziya_llama_waiting_for_images", 0)
    await until_metric(triton, "ziya_llama_running", 0)
    await until_metric(triton, "ziya_llama_waiting", 0)
    assert triton.metric("ziya_llama_cancelled_total") > before


async def test_an_asker_that_is_announced_to_have_left_frees_its_slot(
    client: TritonClient, triton: TritonServer, bus: Bus
) -> None:
    """Its call stays open, so that Triton itself knows nothing of it. What is announced of others does not matter."""
    before, deadline = triton.metric("ziya_llama_cancelled_total"), time.time() + 60
    waiting = {**GREEDY, "deadline": deadline, "request_id": "mine"}
    task = asyncio.create_task(client.ask(["", "x"], waiting, image_keys=keys(["ziya:tokens:never"])))
    await until_metric(triton, "ziya_llama_waiting_for_images", 1)
    await bus.announce(left_key("mine", deadline + 1))
    await bus.announce(left_key("another", deadline))
    assert [piece.error for piece in await client.ask(QUESTION, GREEDY)][-1] == ""
    assert not task.done()
    await bus.announce(left_key("mine", deadline))
    assert (await task)[-1].error.startswith("Cancelled: ")
    assert triton.metric("ziya_llama_cancelled_total") <= before + 1
    await until_metric(triton, "ziya_llama_cancelled_total", before + 1)


async def test_twenty_at_once_are_answered_right(client: TritonClient, tiny_checkpoint: Path) -> None:
    questions = [[f"<human>:{'这是一只猫狗什么图'[: n % 9]} {'the cat'[: n % 7]}\n<bot>:"] for n in range(20)]
    answers = await asyncio.gather(*(client.ask(question, GREEDY) for question in questions))
    for question, pieces in zip(questions, answers, strict=True):
        assert text_of(pieces) == expected_text(tiny_checkpoint, question)


async def test_stop_strings_and_seeds_pass_through(client: TritonClient) -> None:
    whole = text_of(await client.ask(QUESTION, GREEDY))
    pieces = await client.ask(QUESTION, {**GREEDY, "stop": whole[5:8]})
    assert text_of(pieces) == whole[: whole.index(whole[5:8])]
    assert pieces[-1].finish_reason == "stop"
    seeded = {"temperature": 1.3, "top_p": 0.95, "seed": 9, "max_tokens": 16}
    assert text_of(await client.ask(QUESTION, seeded)) == text_of(await client.ask(QUESTION, seeded))


async def test_metrics_are_on_tritons_own_page(client: TritonClient, triton: TritonServer) -> None:
    names = ("tokens_total", "first_token_seconds_count", "steps_total")
    before = {name: triton.metric(f"ziya_llama_{name}") for name in names}
    await client.ask(QUESTION, GREEDY)
    for name, more in zip(names, (24, 1, 24), strict=True):
        await until_metric(triton, f"ziya_llama_{name}", before[name] + more)
    assert triton.metric("ziya_llama_slots") == 8
    assert triton.metric("ziya_llama_step_seconds_total") > 0
    await until_metric(triton, "ziya_llama_blocks_used", 0)
    assert triton.metric("ziya_llama_blocks") > 0


async def test_what_was_reused_is_counted(client: TritonClient, triton: TritonServer) -> None:
    long = [" ".join(map(str, range(100)))]
    pieces = await client.ask(long, GREEDY)
    before = triton.metric("ziya_llama_cached_tokens_total")
    again = await client.ask(long, GREEDY)
    assert again[-1].usage is not None
    cached = again[-1].usage["cached_tokens"]
    assert text_of(again) == text_of(pieces)
    assert cached > 0
    await until_metric(triton, "ziya_llama_cached_tokens_total", before + cached)


async def test_the_use_of_the_kv_cache_follows_what_runs(client: TritonClient, triton: TritonServer) -> None:
    async def ask_for_ever() -> None:
        while True:
            await client.ask(QUESTION, ENDLESS)

    for count, use in ((16, 1.0), (2, 0.25)):
        tasks = [asyncio.create_task(ask_for_ever()) for _ in range(count)]
        await until_metric(triton, "ziya_llama_kv_use", use)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await until_metric(triton, "ziya_llama_kv_use", 0)


def test_the_end_of_the_certificate_that_was_there_at_the_start_is_told(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = tmp_path / "tls"
    Authority().issue(folder)
    ends = Identity.read(folder).expires
    server = TritonServer(tmp_path, tiny_checkpoint, "unix:///x", ZIYA_TLS_DIR=str(folder)).wait()
    try:
        assert server.metric("ziya_llama_certificate_expires_timestamp_seconds") == pytest.approx(ends, abs=1)
    finally:
        server.stop()


async def test_without_redis_keys_fail_at_once_and_inline_tokens_work(tmp_path: Path, tiny_checkpoint: Path) -> None:
    server = TritonServer(tmp_path, tiny_checkpoint, f"unix://{tmp_path}/nobody.sock")
    try:
        client = TritonClient(server.wait())
        (piece,) = await client.ask(["", "x"], GREEDY, image_keys=keys(["ziya:tokens:k"]))
        assert piece.error.startswith("BusUnavailable: ")
        inline = await client.ask(["", "x"], GREEDY, visual_tokens=visual()[None])
        assert text_of(inline) == expected_text(tiny_checkpoint, ["", "x"], [visual()])
        await client.close()
    finally:
        assert server.stop() == 0


def test_a_wrong_setting_stops_the_server_with_its_name(tmp_path: Path, tiny_checkpoint: Path) -> None:
    server = TritonServer(tmp_path, tiny_checkpoint, "unix:///x", ZIYA_LLAMA_DTYP="float32")
    with pytest.raises(AssertionError, match="ZIYA_LLAMA_DTYP is not a setting"):
        server.wait()
    assert server.stop() != 0


def test_nothing_outlives_a_killed_server(tmp_path: Path, tiny_checkpoint: Path) -> None:
    server = TritonServer(tmp_path, tiny_checkpoint, "unix:///x")
    try:
        stub = server.wait().stub()
        server.process.kill()
        server.process.wait()
        gone, alive = psutil.wait_procs([stub], timeout=30)
        assert (gone, alive) == ([stub], [])
    finally:
        server.stop()


def test_a_server_whose_model_process_was_killed_ends(tmp_path: Path, tiny_checkpoint: Path) -> None:
    server = TritonServer(tmp_path, tiny_checkpoint, "unix:///x")
    try:
        process = psutil.Process(server.wait().process.pid)
        children = process.children(recursive=True)
        server.stub().kill()
        assert server.process.wait(30) != 0
        gone, alive = psutil.wait_procs(children, timeout=30)
        assert alive == []
        assert len(gone) == len(children) >= 2
    finally:
        server.stop()


async def test_schemas_and_logprobs(client: TritonClient) -> None:
    schema = {"type": "array", "items": {"enum": ["猫", "狗"]}, "minItems": 2, "maxItems": 2}
    options = {"temperature": 1, "seed": 3, "max_tokens": 100, "json_schema": schema, "logprobs": 1}
    pieces = await client.ask(QUESTION, options)
    assert pieces[-1].finish_reason == "stop"
    assert len(json.loads(text_of(pieces))) == 2
    told = [word for piece in pieces for word in piece.logprobs]
    assert len(told) == sum(piece.tokens for piece in pieces)
    said = b"".join(bytes(word["bytes"] or ()) for word in told)
    assert said.decode() == text_of(pieces)
    assert all(len(word["top_logprobs"]) == 1 and word["logprob"] < 0 for word in told)
    (refused,) = await client.ask(QUESTION, {"json_schema": {"type": "thing"}})
    assert refused.error.startswith("InvalidRequest: json_schema: ")
