"""A stand-in for Triton: a real gRPC server that speaks KServe v2 and serves a model `ziya_llama`.

It waits for visual tokens on a real bus as the real model does, and its answer names the tokens it was made from.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as kserve
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from tests.fakes import CONFIG, Behaviour, Context, Gate, sight_of
from ziya import wire
from ziya.bus import Announcements
from ziya.errors import ZiyaError, to_line


@dataclass(frozen=True)
class Asked:
    """A request as the fake model read it."""

    texts: list[str]
    image_keys: list[str]
    sights: list[str]
    sampling: dict[str, Any]
    inline: bool


class FakeTriton(GRPCInferenceServiceServicer):
    """`ziya_llama`: answers with the sights of its images and `words`, a word a response.

    `error_after`: words sent before `late_error` comes. `pause_after`: words sent before `pause` is waited for.
    `tokens`: so many are told of each word; with None, none are, as a language model of an older release does.
    Asked for logarithms, it tells one of each word.
    """

    def __init__(self, announcements: Announcements) -> None:
        self._announcements = announcements
        self.behaviour = Behaviour()
        self.words = ["你好", "，", "this is", " a fake", " answer", "。"]
        self.asked: list[Asked] = []
        self.opened = 0
        self.ready = True
        self.late_error: ZiyaError | None = None
        self.error_after = 2
        self.pause: Gate | None = None
        self.pause_after = 1
        self.tokens: int | None = 1

    async def ModelReady(self, request: kserve.ModelReadyRequest, context: Context) -> kserve.ModelReadyResponse:
        return kserve.ModelReadyResponse(ready=self.ready and request.name == "ziya_llama")

    async def ModelStreamInfer(
        self, requests: AsyncIterator[kserve.ModelInferRequest], context: Context
    ) -> AsyncIterator[kserve.ModelStreamInferResponse]:
        try:
            async for request in requests:
                self.opened += 1
                self.behaviour.entered.set()
                async for response in self._answer(request):
                    yield response
        except ZiyaError as error:
            yield kserve.ModelStreamInferResponse(error_message=to_line(error))
        except asyncio.CancelledError:
            self.behaviour.cancelled.set()
            raise

    async def _answer(self, request: kserve.ModelInferRequest) -> AsyncIterator[kserve.ModelStreamInferResponse]:
        asked = await self._read(request)
        self.asked.append(asked)
        await self.behaviour.enter()
        words = [*(f"[{sight}]" for sight in asked.sights), *self.words]
        limit = asked.sampling.get("max_tokens", len(words))
        for number, word in enumerate(words[:limit]):
            if self.late_error is not None and number == self.error_after:
                raise self.late_error
            if self.pause is not None and number == self.pause_after:
                await self.pause.passing()
            logprobs = ""
            if (count := asked.sampling.get("logprobs")) is not None:
                logprobs = json.dumps([logprob_of(word, count)])
            yield _response(word, self.tokens, logprobs=logprobs)
        image_tokens = CONFIG.queries * len(asked.sights)
        usage = {
            "prompt_tokens": sum(map(len, asked.texts)) + image_tokens,
            "image_tokens": image_tokens,
            "completion_tokens": min(limit, len(words)),
            "visual_wait_seconds": 0.001,
            "queue_seconds": 0.001,
            "prefill_seconds": 0.002,
            "decode_seconds": 0.003,
        }
        last = None if self.tokens is None else 0
        yield _response("", last, "length" if limit < len(words) else "stop", json.dumps(usage))

    async def _read(self, request: kserve.ModelInferRequest) -> Asked:
        inputs = {
            tensor.name: (list(tensor.shape), raw)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        sampling = json.loads(_strings(inputs["sampling"][1])[0])
        image_keys = _strings(inputs["image_keys"][1]) if "image_keys" in inputs else []
        if "visual_tokens" in inputs:
            (count, queries, width), raw = inputs["visual_tokens"]
            size = queries * width * 2
            sights = [sight_of(raw[i * size : (i + 1) * size]) for i in range(count)]
        else:
            sights = [await self._sight(key, sampling["deadline"]) for key in image_keys]
        texts = _strings(inputs["prompt"][1])
        assert len(texts) == len(sights) + 1
        return Asked(texts, image_keys, sights, sampling, "visual_tokens" in inputs)

    async def _sight(self, key: str, deadline: float) -> str:
        data = await self._announcements.wait(key, deadline)
        shape = (CONFIG.queries, CONFIG.qformer_width)
        fingerprint = CONFIG.fingerprints["qformer"]
        return sight_of(
            wire.unpack(data, stage=wire.Stage.TOKENS, fingerprint=fingerprint, shape=shape).array.tobytes()
        )


def logprob_of(word: str, count: int) -> dict[str, Any]:
    """What the fake model tells of a word."""
    data = word.encode()
    told = {"id": len(data), "token": word, "bytes": list(data), "logprob": -len(data) / 8}
    return told | {"top_logprobs": [told | {"id": number} for number in range(count)]}


def _response(
    text: str, tokens: int | None, finish_reason: str = "", usage: str = "", logprobs: str | None = None
) -> kserve.ModelStreamInferResponse:
    response = kserve.ModelInferResponse(model_name="ziya_llama")
    if tokens is not None:
        response.outputs.add(name="tokens", datatype="INT32", shape=[1])
        response.raw_output_contents.append(struct.pack("<i", tokens))
    outputs = [("text", text), ("finish_reason", finish_reason), ("usage", usage)]
    if logprobs is not None:
        outputs.append(("logprobs", logprobs))
    for name, value in outputs:
        response.outputs.add(name=name, datatype="BYTES", shape=[1])
        raw = value.encode()
        response.raw_output_contents.append(struct.pack("<I", len(raw)) + raw)
    return kserve.ModelStreamInferResponse(infer_response=response)


def _strings(raw: bytes) -> list[str]:
    texts = []
    while raw:
        (size,) = struct.unpack_from("<I", raw)
        texts.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    return texts


class TritonServer:
    """A FakeTriton on a port of its own, that can be killed and started again at the same port."""

    def __init__(self, servicer: FakeTriton) -> None:
        self.servicer = servicer
        self.port = 0
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_GRPCInferenceServiceServicer_to_server(self.servicer, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def kill(self) -> None:
        """Connections break at once, as when the process dies."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None
