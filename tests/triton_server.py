"""A real Triton with the LLaMA in it, and a client that talks to it as any client would."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

from services.llama.triton import TritonOptions, clean, command, prepare

MODEL = "ziya_llama"
START_SECONDS = 60


def free_ports(count: int) -> list[int]:
    """Loopback ports that nothing listens on, all different, and below those that the kernel gives to clients:

    Triton binds them only seconds later, and cannot be told to take any.
    """
    found: set[int] = set()
    while len(found) < count:
        port = SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.add(port)
    return list(found)


class TritonServer:
    """Started by the constructor, ready after `wait`. It waits for no Redis, unless `settings` tell it to."""

    def __init__(self, folder: Path, checkpoint: Path, redis_url: str, **settings: str) -> None:
        http, grpc_port, metrics = free_ports(3)
        self.options = TritonOptions(folder, http, grpc_port, metrics, exit_seconds=5)
        self.http, self.grpc = f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc_port}"
        prepare(self.options)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("ZIYA_")}
        own = {"ZIYA_CHECKPOINT": str(checkpoint), "ZIYA_REDIS_URL": redis_url, "OMP_NUM_THREADS": "1"}
        own["ZIYA_REDIS_START_SECONDS"] = "0"
        argv, environ = command(self.options, {**environ, **own, "OMP_WAIT_POLICY": "PASSIVE", **settings})
        self.log = folder / "triton.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(argv, env=environ, stdout=log, stderr=log)

    def wait(self) -> TritonServer:
        """Until the model can answer. Raises AssertionError with the log when the server ends before."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if httpx.get(f"{self.http}/v2/models/{MODEL}/ready").is_success:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"Triton did not become ready:\n{self.log.read_text('utf-8')}")

    def stub(self) -> psutil.Process:
        """The Python process that runs the model."""
        return next(c for c in psutil.Process(self.process.pid).children() if "stub" in c.name())

    def metric(self, name: str) -> float:
        """The value of one of our metrics on Triton's /metrics."""
        text = httpx.get(f"http://127.0.0.1:{self.options.metrics_port}/metrics").text
        values = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        assert values, f"no metric {name}"
        return float(values[0])

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            clean(self.options)


@dataclass(frozen=True)
class Piece:
    """One response, or the error that ended the stream."""

    text: str = ""
    tokens: int = 0
    finish_reason: str = ""
    usage: dict[str, Any] | None = None
    error: str = ""
    logprobs: tuple[dict[str, Any], ...] = ()


class TritonClient:
    """Raw KServe v2 over gRPC: what any language's client sends."""

    def __init__(self, server: TritonServer) -> None:
        self._channel = grpc.aio.insecure_channel(server.grpc)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def stream(
        self, texts: Sequence[str], sampling: dict[str, Any], **inputs: np.ndarray[Any, Any]
    ) -> AsyncIterator[Piece]:
        """Pieces as they come; leaving early cancels the call."""
        call = self._stub.ModelStreamInfer(iter([self._request(texts, sampling, inputs)]))
        try:
            async for response in call:
                if response.error_message:
                    yield Piece(error=response.error_message)
                else:
                    yield _piece(response.infer_response)
        finally:
            call.cancel()

    def _request(
        self, texts: Sequence[str], sampling: dict[str, Any], inputs: dict[str, np.ndarray[Any, Any]]
    ) -> service_pb2.ModelInferRequest:
        request = service_pb2.ModelInferRequest(model_name=MODEL)
        arrays = {"prompt": _objects(texts), "sampling": _objects([json.dumps(sampling)]), **inputs}
        for name, array in arrays.items():
            text = array.dtype == np.object_
            request.inputs.add(name=name, datatype="BYTES" if text else "FP16", shape=array.shape)
            request.raw_input_contents.append(serialize_byte_tensor(array).item() if text else array.tobytes())
        return request

    async def ask(self, texts: Sequence[str], sampling: dict[str, Any], **inputs: np.ndarray[Any, Any]) -> list[Piece]:
        return [piece async for piece in self.stream(texts, sampling, **inputs)]


def keys(names: Sequence[str]) -> np.ndarray[Any, Any]:
    return _objects(names)


def _objects(texts: Sequence[str]) -> np.ndarray[Any, Any]:
    return np.array([text.encode() for text in texts], dtype=np.object_)


def _piece(response: service_pb2.ModelInferResponse) -> Piece:
    pairs = zip(response.outputs, response.raw_output_contents, strict=True)
    raw = {output.name: data for output, data in pairs}
    text, reason = (raw[name][4:].decode("utf-8") for name in ("text", "finish_reason"))
    usage, logprobs = (raw.get(name, b"")[4:].decode("utf-8") for name in ("usage", "logprobs"))
    assert ("usage" in raw) == bool(reason), "the usage goes with the last response alone"
    tokens = int.from_bytes(raw["tokens"], "little")
    told = json.loads(logprobs) if logprobs else ()
    return Piece(text, tokens, reason, json.loads(usage) if usage else None, logprobs=tuple(told))
