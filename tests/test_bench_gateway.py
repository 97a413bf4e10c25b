"""`ziya bench` against a real gateway, over both of its faces; what is behind it counts what it was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateways import Scene, scene
from tests.test_bench_command import bench, measured
from ziya.errors import Overloaded

FACES = pytest.mark.parametrize("face", ["http", "grpc"])
PICTURES = ("--images", "generated", "--image-size", "32")


@pytest.fixture
async def here(redis_url: str, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(redis_url, tmp_path) as made:
        yield made


def url(here: Scene, face: str) -> str:
    return here.url if face == "http" else f"grpc://127.0.0.1:{here.gateway.grpc_port}"


@FACES
async def test_all_is_answered_and_counted_as_the_gateway_counts_it(here: Scene, face: str, tmp_path: Path) -> None:
    words = ("--requests", "20", "--concurrency", "4", "--warm-up", "0", "--ignore-eos", *PICTURES)
    found = await measured(tmp_path, "--url", url(here, face), *words, "--answer-tokens", "5")
    summary: dict[str, Any] = found["summary"]
    assert (summary["succeeded"], summary["failed"]) == (20, 0)
    assert summary["tokens"] == {
        "counted_from": "usage",
        "prompt": summary["tokens"]["prompt"],
        "cached": 0,
        "image": 20 * 4,
        "completion": 20 * 5,
        "pieces": 20 * 5,
    }
    assert summary["tokens"]["prompt"] > 20 * 4
    assert {"vision", "prefill", "decode"} <= set(summary["stages"])
    assert len(here.behind.vision.requests) == 20
    sampling = [asked.sampling for asked in here.behind.triton.asked[2:]]
    assert all((one["max_tokens"], one["temperature"], one["ignore_eos"]) == (5, 0.0, True) for one in sampling)


@FACES
async def test_pictures_shown_before_are_found_in_the_cache(here: Scene, face: str, tmp_path: Path) -> None:
    words = ("--requests", "30", "--warm-up", "0", "--reuse", "0.6", *PICTURES)
    found = await measured(tmp_path, "--url", url(here, face), *words)
    reused = found["summary"]["reused"]
    assert 10 <= reused <= 26
    assert len(here.behind.vision.requests) == 30 - reused
    assert found["summary"]["tokens"]["cached"] == 4 * reused
    again = await measured(tmp_path, "--url", url(here, face), *words)
    assert again["summary"]["reused"] == reused
    assert len(here.behind.vision.requests) == 2 * (30 - reused)  # a second run has pictures of its own
    nonce = str(again["settings"]["nonce"])
    await measured(tmp_path, "--url", url(here, face), *words, "--nonce", nonce)
    assert len(here.behind.vision.requests) == 2 * (30 - reused)  # unless it is told not to


@FACES
async def test_follow_ups_carry_their_picture_and_the_answer(here: Scene, face: str, tmp_path: Path) -> None:
    words = ("--requests", "20", "--warm-up", "0", "--follow-ups", "0.5", *PICTURES)
    found = await measured(tmp_path, "--url", url(here, face), *words)
    turns = [request["turns"] for request in found["requests"]]
    assert found["summary"]["follow_ups"] == sum(count > 1 for count in turns) >= 4
    # One picture a conversation, in each of its questions.
    assert [len(asked.image_keys) for asked in here.behind.triton.asked[2:]] == [1] * 20
    assert found["summary"]["pictures"] == sum(count == 1 for count in turns) == len(here.behind.vision.requests)


@FACES
async def test_errors_of_the_gateway_keep_their_words(here: Scene, face: str, tmp_path: Path) -> None:
    # The first two questions teach the length of words; gRPC alone says the class of an error in the middle.
    here.behind.triton.error_after = 2
    kinds = {"http": "error in stream", "grpc": "grpc RESOURCE_EXHAUSTED in stream"}
    file = tmp_path / "out.json"
    here.behind.triton.late_error = Overloaded("the queue is full")
    status, out, err = await bench(
        "--url", url(here, face), "--requests", "3", "--warm-up", "0", "--answer-tokens", "5", "--json", file
    )
    assert status == 1, err
    assert "0 of 3 answered, 3 failed" in out
    assert f"3 × {kinds[face]}: " in out
    assert "the queue is full" in out


@FACES
async def test_a_key_is_needed_where_the_gateway_wants_one(redis_url: str, tmp_path: Path, face: str) -> None:
    async with scene(redis_url, tmp_path, gateway_api_keys="one-key") as here:
        words = ("--url", url(here, face), "--requests", "2")
        status, _, err = await bench(*words)
        assert status == 1
        assert "API key" in err
        status, _, err = await bench(*words, env={"OPENAI_API_KEY": "one-key"})
        assert status == 0, err
