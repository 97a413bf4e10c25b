"""The vision service over real gRPC and real Redis, with random tiny weights."""

import asyncio
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from protos.vision_pb2 import EncodeReply, EncodeRequest
from tests.encoders import NO_REDIS, Running, picture, running_vision
from tests.redis_server import RedisServer
from ziya import rpc, wire
from ziya.bus import Bus, Delivery
from ziya.content import ContentKeys
from ziya.errors import BusUnavailable, DeadlineExceeded, InvalidImage, InvalidRequest, NotFound, Overloaded
from ziya.images import ImageLimits, decode
from ziya.keys import image_id
from ziya.model.vision import VisionEncoder

ATOL = 2e-3  # float16, and sums in another order in another batch


def direct(checkpoint: Path, *images: bytes) -> np.ndarray:
    """Features by the model called directly, float16 [B, N, D]."""
    model = VisionEncoder.load(checkpoint)
    return model(np.stack([model.preprocessing(decode(image, ImageLimits())) for image in images]))


def features(checkpoint: Path, envelope: bytes) -> np.ndarray:
    keys = ContentKeys.load(checkpoint)
    shape = (17, keys.config.vision_width)
    stage = wire.Stage.FEATURES
    return wire.unpack(envelope, stage=stage, fingerprint=keys.vision_fingerprint, shape=shape).array


async def encode(vision: Running, seconds: float = 30, **fields: Any) -> EncodeReply:
    return await rpc.call(vision.stub.Encode, EncodeRequest(**fields), deadline=time.time() + seconds)


async def read_work(bus: Bus, count: int = 16) -> list[Delivery]:
    """The first batch on the work stream."""
    deliveries = bus.consume("test", "reader", count=count)
    batch = await anext(deliveries)
    await deliveries.aclose()
    return batch


async def test_features_on_the_bus_are_the_models(tiny_checkpoint: Path, redis_url: str, bus: Bus) -> None:
    image, keys = picture(1), ContentKeys.load(tiny_checkpoint)
    async with running_vision(tiny_checkpoint, redis_url) as vision:
        before = time.time()
        reply = await encode(vision, image=image, instruction="what is it?", seconds=20)
    assert reply.image_id == image_id(image)
    assert reply.features_key == keys.features(reply.image_id)
    assert reply.tokens_key == keys.tokens(reply.features_key, "")
    assert not reply.cached
    assert reply.compute_seconds > 0
    assert not reply.features.envelope
    stored = await bus.get(reply.features_key)
    assert stored
    np.testing.assert_allclose(features(tiny_checkpoint, stored), direct(tiny_checkpoint, image)[0], atol=ATOL)
    (delivery,) = await read_work(bus)
    assert delivery.work.features_key == reply.features_key
    assert delivery.work.tokens_key == reply.tokens_key
    assert delivery.work.instruction == "what is it?"
    assert before + 19 < delivery.work.deadline < before + 25


async def test_inline_needs_no_redis(tiny_checkpoint: Path) -> None:
    image = picture(2)
    async with running_vision(tiny_checkpoint, NO_REDIS) as vision:
        first = await encode(vision, image=image, inline=True)
        again = await encode(vision, image_id=first.image_id, inline=True)
        with pytest.raises(BusUnavailable):
            await encode(vision, image=image)
    expected = direct(tiny_checkpoint, image)[0]
    np.testing.assert_allclose(features(tiny_checkpoint, first.features.envelope), expected, atol=ATOL)
    assert (first.cached, again.cached) == (False, True)
    assert again.features == first.features
    assert first.tokens_key == ""


async def test_one_truncated_image_of_eight_fails_alone(tiny_checkpoint: Path, redis_url: str, bus: Bus) -> None:
    images = [picture(seed) for seed in range(8)]
    images[3] = images[3][: len(images[3]) // 2]
    async with running_vision(tiny_checkpoint, redis_url) as vision:
        replies = await asyncio.gather(*(encode(vision, image=i) for i in images), return_exceptions=True)
        assert vision.metric("images_refused_total") == 1
    assert isinstance(replies[3], InvalidImage)
    assert "damaged or cut off" in str(replies[3])
    good = [(image, reply) for image, reply in zip(images, replies, strict=True) if isinstance(reply, EncodeReply)]
    assert len(good) == 7
    expected = direct(tiny_checkpoint, *(image for image, _ in good))
    for (_, reply), row in zip(good, expected, strict=True):
        np.testing.assert_allclose(features(tiny_checkpoint, await bus.get(reply.features_key) or b""), row, atol=ATOL)


async def test_twenty_equal_images_run_the_vit_once(tiny_checkpoint: Path, redis_url: str, bus: Bus) -> None:
    async with running_vision(tiny_checkpoint, redis_url) as vision:
        replies = await asyncio.gather(*(encode(vision, image=picture(4)) for _ in range(20)))
        assert vision.metric("features_total", source="computed") == 1
        assert vision.metric("batch_size_sum") == 2  # the warm-up, and this image
    assert len({reply.features_key for reply in replies}) == 1
    assert sum(not reply.cached for reply in replies) == 1


async def test_a_burst_ends_in_answers_or_refusals(tiny_checkpoint: Path, redis_url: str, bus: Bus) -> None:
    options = {"vision_max_queue": 16, "vision_max_batch": 8, "max_concurrent": 100}
    async with running_vision(tiny_checkpoint, redis_url, **options) as vision:
        calls = (encode(vision, image=picture(seed, 16)) for seed in range(200))
        replies = await asyncio.gather(*calls, return_exceptions=True)
        answered = [reply for reply in replies if isinstance(reply, EncodeReply)]
        assert vision.metric("batch_queued") == 0
        assert vision.metric("rpc_in_flight") == 0
    assert len(answered) + sum(isinstance(reply, Overloaded) for reply in replies) == 200
    assert len(answered) == await bus.backlog() > 0
    assert all(await bus.get_many([reply.features_key for reply in answered]))


async def test_the_reference_carries_the_latest_deadline(tiny_checkpoint: Path, redis_url: str, bus: Bus) -> None:
    async with running_vision(tiny_checkpoint, redis_url) as vision:
        await asyncio.gather(*(encode(vision, image=picture(5), seconds=s) for s in (15, 50, 25)))
    works = [delivery.work for delivery in await read_work(bus)]
    assert max(work.deadline for work in works) > time.time() + 30


async def test_cached_features_queue_work_without_the_vit(tiny_checkpoint: Path, redis_url: str, bus: Bus) -> None:
    image = picture(6)
    async with running_vision(tiny_checkpoint, redis_url, vision_memory_bytes=0) as vision:
        first = await encode(vision, image=image)
        by_bytes = await encode(vision, image=image)
        by_id = await encode(vision, image_id=first.image_id.upper())
        assert vision.metric("features_total", source="computed") == 1
        assert vision.metric("features_total", source="bus") == 2
        assert vision.metric("batch_size_sum") == 2
    assert (by_bytes.cached, by_id.cached) == (True, True)
    assert [delivery.work.tokens_key for delivery in await read_work(bus)] == [first.tokens_key] * 3


async def test_an_image_id_that_nobody_has_is_not_found(tiny_checkpoint: Path, redis_url: str) -> None:
    async with running_vision(tiny_checkpoint, redis_url) as vision:
        with pytest.raises(NotFound, match="send the image again"):
            await encode(vision, image_id="ab" * 32)
        with pytest.raises(NotFound):
            await encode(vision, image_id="ab" * 32, inline=True)


async def test_an_image_id_must_be_that_of_the_image(tiny_checkpoint: Path, redis_url: str) -> None:
    async with running_vision(tiny_checkpoint, redis_url) as vision:
        with pytest.raises(InvalidRequest, match="image_id"):
            await encode(vision, image=picture(7), image_id="ab" * 32)
        with pytest.raises(InvalidRequest, match="image_id"):
            await encode(vision)


async def test_salts_keep_tenants_apart(tiny_checkpoint: Path, redis_url: str) -> None:
    async with running_vision(tiny_checkpoint, redis_url) as vision:
        one, two = [await encode(vision, image=picture(8), salt=salt) for salt in ("one", "two")]
    assert one.features_key != two.features_key
    assert not two.cached


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is this large, with next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 << 16)))


async def test_bombs_and_oversize_files_are_refused(tiny_checkpoint: Path, redis_url: str) -> None:
    wide = io.BytesIO()
    Image.new("L", (2000, 2000)).save(wide, "PNG")
    options = {"vision_max_image_bytes": 100_000, "vision_max_image_pixels": 1_000_000}
    async with running_vision(tiny_checkpoint, redis_url, **options) as vision:
        for image, words in (
            (png_header(16_000, 16_000), "16000 × 16000"),
            (wide.getvalue(), "at most 1000000 pixels"),
            (picture(9, 64) + bytes(100_000), "at most 100000 are accepted"),
            (b"GIF89a", "GIF header"),
            (b"hello", "not a PNG, JPEG, WebP, GIF or BMP"),
        ):
            with pytest.raises(InvalidImage, match=words):
                await encode(vision, image=image)
        with pytest.raises(grpc.aio.AioRpcError) as raw:
            await vision.stub.Encode(EncodeRequest(image=b"hello"))
        assert raw.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert vision.metric("batch_size_sum") == 1  # the warm-up alone


async def test_a_full_backlog_refuses(tiny_checkpoint: Path, redis_url: str) -> None:
    async with running_vision(tiny_checkpoint, redis_url, bus_max_backlog=2) as vision:
        await encode(vision, image=picture(10))
        await encode(vision, image=picture(11))
        with pytest.raises(Overloaded):
            await encode(vision, image=picture(12))


async def test_a_call_without_time_left_does_not_run(tiny_checkpoint: Path) -> None:
    async with running_vision(tiny_checkpoint, NO_REDIS) as vision:
        with pytest.raises(DeadlineExceeded):
            await encode(vision, image=picture(13), inline=True, seconds=1e-4)
        await encode(vision, image=picture(14), inline=True)


async def test_redis_lost_and_found(tiny_checkpoint: Path, redis_server: RedisServer) -> None:
    async with running_vision(tiny_checkpoint, redis_server.url) as vision:
        await encode(vision, image=picture(15))
        redis_server.kill()
        with pytest.raises(BusUnavailable):
            await encode(vision, image=picture(15))
        inline = await encode(vision, image=picture(15), inline=True)
        redis_server.start()
        again = await encode(vision, image=picture(15))
    assert inline.cached
    assert inline.features.envelope
    assert again.cached  # from memory, and stored again
    assert again.features_key == inline.features_key


async def test_instructions_share_the_vit_run(tiny_reading_checkpoint: Path, redis_url: str, bus: Bus) -> None:
    questions = ("what is it?", "这是什么?")
    async with running_vision(tiny_reading_checkpoint, redis_url) as vision:
        replies = await asyncio.gather(*(encode(vision, image=picture(16), instruction=q) for q in questions))
        assert vision.metric("batch_size_sum") == 2
    assert replies[0].features_key == replies[1].features_key
    assert replies[0].tokens_key != replies[1].tokens_key
    batch = await read_work(bus)
    while len(batch) < 2:
        batch += await read_work(bus)
    assert {d.work.instruction: d.work.tokens_key for d in batch} == {
        q: reply.tokens_key for q, reply in zip(questions, replies, strict=True)
    }


async def test_health_is_told_by_name(tiny_checkpoint: Path) -> None:
    async with running_vision(tiny_checkpoint, NO_REDIS) as vision:
        health = health_pb2_grpc.HealthStub(vision.channel)
        for name in ("", "ziya.visual.v1.VisionEncoder"):
            reply = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("module", ["services.vision.app", "services.qformer.app"])
def test_the_program_serves_and_stops_cleanly(module: str, tiny_checkpoint: Path) -> None:
    word = module.split(".")[1].upper()
    ports = {f"ZIYA_{word}_PORT": "0", "OMP_NUM_THREADS": "1", "ZIYA_REDIS_START_SECONDS": "0"}
    env = {**os.environ, **ports, "ZIYA_CHECKPOINT": str(tiny_checkpoint), "ZIYA_REDIS_URL": NO_REDIS}
    command = [sys.executable, "-m", module]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        assert line["event"] == "listening"
        assert line["service"] == word.lower()
        with grpc.insecure_channel(f"127.0.0.1:{line['grpc']}") as channel:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log
    assert "Traceback" not in log


@pytest.mark.parametrize("module", ["services.vision.app", "services.qformer.app"])
def test_a_folder_that_is_no_checkpoint_ends_the_program(module: str, tmp_path: Path) -> None:
    env = {**os.environ, "ZIYA_CHECKPOINT": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-m", module], env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "has no config.json" in ended.stderr
    assert "Traceback" not in ended.stderr
