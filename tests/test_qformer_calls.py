"""The Q-Former's RPCs over real gRPC with random tiny weights: Query by tensor and by key, and retrieval."""

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protos.qformer_pb2 import EmbedImageRequest, EmbedTextRequest, Features, MatchRequest, QueryReply, QueryRequest
from protos.tensor_pb2 import Tensor
from tests.encoders import ATOL, NO_REDIS, Running, direct_tokens, packed, random_features, running_qformer, tokens
from ziya import rpc
from ziya.bus import READY, Bus
from ziya.content import ContentKeys
from ziya.errors import BusUnavailable, InvalidEnvelope, InvalidRequest, NotFound, Unimplemented
from ziya.model.qformer import QFormer

TTL = 60.0


async def query(qformer: Running, **fields: Any) -> QueryReply:
    return await rpc.call(qformer.stub.Query, QueryRequest(**fields), deadline=time.time() + 30)


async def test_query_inline_needs_no_redis(tiny_checkpoint: Path) -> None:
    keys = ContentKeys.load(tiny_checkpoint)
    features = Features(tensor=Tensor(envelope=packed(keys, random_features(4))))
    async with running_qformer(tiny_checkpoint, NO_REDIS) as qformer:
        reply = await query(qformer, features=features, inline=True)
        with pytest.raises(BusUnavailable):
            await query(qformer, features=features)
        with pytest.raises(InvalidEnvelope, match="truncated"):
            await query(qformer, features=Features(tensor=Tensor(envelope=b"ZIYA")), inline=True)
        with pytest.raises(InvalidRequest, match="features"):
            await query(qformer, inline=True)
    expected = direct_tokens(tiny_checkpoint, random_features(4))
    np.testing.assert_allclose(tokens(keys, reply.tokens.envelope), expected, atol=ATOL)
    assert reply.compute_seconds > 0


async def test_query_by_key_stores_and_announces(tiny_checkpoint: Path, redis_url: str, bus: Bus) -> None:
    keys = ContentKeys.load(tiny_checkpoint)
    features_key = keys.features("image")
    async with running_qformer(tiny_checkpoint, redis_url) as qformer:
        with pytest.raises(NotFound, match="not \\(any more\\) on the bus"):
            await query(qformer, features=Features(features_key=features_key))
        await bus.put(features_key, packed(keys, random_features(5)), TTL)
        reply = await query(qformer, features=Features(features_key=features_key))
    assert reply.tokens_key == keys.tokens(features_key, "")
    envelope = await bus.get(reply.tokens_key) or b""
    announced = await bus.link.call("XREVRANGE", READY, "+", "-", "COUNT", 1)
    assert reply.tokens_key.encode() in announced[0][1]
    np.testing.assert_allclose(tokens(keys, envelope), direct_tokens(tiny_checkpoint, random_features(5)), atol=ATOL)


async def test_equal_tensors_of_two_tenants_have_two_keys(tiny_checkpoint: Path, redis_url: str) -> None:
    features = Features(tensor=Tensor(envelope=packed(ContentKeys.load(tiny_checkpoint), random_features(6))))
    async with running_qformer(tiny_checkpoint, redis_url) as qformer:
        one, two, again = [await query(qformer, features=features, salt=salt) for salt in ("one", "two", "one")]
    assert one.tokens_key != two.tokens_key
    assert one.tokens_key == again.tokens_key


async def test_retrieval_is_the_models(tiny_reading_checkpoint: Path) -> None:
    keys, model = ContentKeys.load(tiny_reading_checkpoint), QFormer.load(tiny_reading_checkpoint)
    array, text = random_features(7), "a cat"
    features = Features(tensor=Tensor(envelope=packed(keys, array)))
    async with running_qformer(tiny_reading_checkpoint, NO_REDIS) as qformer:
        image_reply, text_reply, match_reply = await asyncio.gather(
            rpc.call(qformer.stub.EmbedImage, EmbedImageRequest(features=features)),
            rpc.call(qformer.stub.EmbedText, EmbedTextRequest(text=text)),
            rpc.call(qformer.stub.Match, MatchRequest(features=features, text=text)),
        )
    ids = [model.tokenize(text)]
    image_QJ, text_1J, logits = model.embed_image(array[None])[0], model.embed_text(ids), model.match(array[None], ids)
    np.testing.assert_allclose(tokens(keys, image_reply.embedding.envelope, (4, 16)), image_QJ, atol=1e-5)
    np.testing.assert_allclose(tokens(keys, text_reply.embedding.envelope, (1, 16)), text_1J, atol=1e-5)
    exponents = np.exp(logits[0])
    assert match_reply.match_probability == pytest.approx(exponents[1] / exponents.sum(), abs=1e-5)
    assert match_reply.similarity == pytest.approx((image_QJ @ text_1J[0]).max(), abs=1e-5)


async def test_retrieval_without_heads_is_unimplemented(tiny_checkpoint: Path) -> None:
    features = Features(tensor=Tensor(envelope=packed(ContentKeys.load(tiny_checkpoint), random_features(8))))
    async with running_qformer(tiny_checkpoint, NO_REDIS) as qformer:
        for method, request in (
            (qformer.stub.EmbedImage, EmbedImageRequest(features=features)),
            (qformer.stub.EmbedText, EmbedTextRequest(text="a cat")),
            (qformer.stub.Match, MatchRequest(features=features, text="a cat")),
        ):
            with pytest.raises(Unimplemented, match="retrieval heads"):
                await rpc.call(method, request)
