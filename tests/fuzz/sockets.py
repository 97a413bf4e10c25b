"""Hostile bytes on the gateway's HTTP port and on gRPC ports: what is not the protocol, and what nearly is."""

from __future__ import annotations

import http.client
import socket
import struct
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tests.fuzz.check import Defect, Hang, Outcome, Target
from tests.fuzz.strategies import mutated

# After so long without an answer the client says that it has ended; then the server must end, too.
PATIENCE = 0.05
END_SECONDS = 20.0
_PATH = b"/v1/chat/completions"
_BODY = b'{"model": "ziya-visual", "messages": [{"role": "user", "content": "x"}]}'
_GOOD = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (_PATH, len(_BODY), _BODY)
_HEADERS = [
    b"Content-Length: 99999999999999999999",
    b"Content-Length: -1",
    b"Content-Length: 5\r\nContent-Length: 6",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5",
    b"Transfer-Encoding: gzip, chunked",
    b"Expect: 100-continue",
    b"Connection: upgrade\r\nUpgrade: h2c",
    b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13",
    b"Content-Encoding: gzip",
    b"Content-Type: text/xml",
    b"Authorization: Bearer \xff\xfe",
    b"X-Request-Timeout: nan",
    b"X-Request-Timeout: 1e309",
    b"X-Request-Id: \r\n\tfolded",
    b"traceparent: 00-" + b"f" * 32 + b"-0-zz",
    b"traceparent: " + b"x" * 5000,
    b"X: " + b"y" * 70_000,
    b"A: b\r\n" * 20_000,
    b"Host: \0",
]
_TARGETS = [
    _PATH,
    b"/",
    b"*",
    b"//",
    b"/v1/models/%00%ff",
    b"/healthz/",
    b"//evil.example/",
    b"/../../etc/passwd",
    b"/\xff",
    b"http://x/",
    b"x:443",
    b"/" + b"a" * 70_000,
]
_HOSTS = [b"Host: x", b"Host: x", b"Host: [::1", b"Host: a@b:c", b"Host: x:99999", b"Host: \xff", b"X: no host"]
_METHODS = [b"POST", b"GET", b"HEAD", b"OPTIONS", b"CONNECT", b"PRI", b"DELETE", b"TRACE", b"GETT", b""]
_CHUNKS = [
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"-1\r\n",
    b"5;a=" + b"b" * 900 + b"\r\nhello\r\n",
    b"1\r\nxx",
]


@st.composite
def _http(draw: DrawFn) -> bytes:
    line = b"%s %s %s" % (
        draw(st.sampled_from(_METHODS)),
        draw(st.sampled_from(_TARGETS)),
        draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b""])),
    )
    headers = [draw(st.sampled_from(_HOSTS)), *draw(st.lists(st.sampled_from(_HEADERS), max_size=3))]
    end = draw(st.sampled_from([b"\r\n", b"\r\n", b"\n", b"\r"]))
    body = draw(st.sampled_from([b"", _BODY, b"".join(draw(st.lists(st.sampled_from(_CHUNKS), max_size=4)))]))
    return end.join([line, *headers, b"", b""]) + body


_TLS_HELLO = bytes.fromhex("160301020001fc0303")
HTTP_BYTES = st.one_of(
    _http(), mutated(_GOOD), st.binary(max_size=200), mutated(_GOOD * 3), st.just(_GOOD * 50), st.just(_TLS_HELLO)
)


def over_http(port: int) -> Callable[[bytes], Outcome]:
    """Sends bytes, and afterwards asks whether the server is well."""

    def feed(data: bytes) -> Outcome:
        answer = exchange(port, data)
        if any(line.startswith(b"HTTP/1.1 5") for line in answer.split(b"\r\n")):
            raise Defect(f"{answer[:500]!r}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=END_SECONDS)
        try:
            connection.request("GET", "/healthz")
            if connection.getresponse().status != 200:
                raise Defect("the server is not well")
        except TimeoutError:
            raise Hang("the server does not answer any more") from None
        finally:
            connection.close()
        return Outcome.ANSWERED if answer.startswith(b"HTTP/1.1 200") else Outcome.REFUSED

    return feed


def exchange(port: int, data: bytes) -> bytes:
    """All that comes back until the server closes. Raises Hang when it does not."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=END_SECONDS) as client:
        try:
            client.sendall(data)
            client.settimeout(PATIENCE)
            try:
                while block := client.recv(65536):
                    received += block
                return received
            except TimeoutError:
                client.shutdown(socket.SHUT_WR)
            client.settimeout(END_SECONDS)
            while block := client.recv(65536):
                received += block
        except TimeoutError:
            raise Hang(f"the connection was left open after {received[:100]!r}") from None
        except ConnectionError:
            pass  # reset: closed without having read all
    return received


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@st.composite
def _frame(draw: DrawFn) -> bytes:
    """A frame of HTTP/2 (RFC 9113) whose length may lie."""
    payload = draw(st.binary(max_size=80) | st.sampled_from([b"\x82\x86\x84\x41\x8a", b"\0" * 8, b"\x88" * 5000]))
    length = draw(st.just(len(payload)) | st.sampled_from([0, 1, 16_385, 0xFFFFFF]))
    kind, flags = draw(st.integers(0, 12)), draw(st.integers(0, 255))
    stream = draw(st.sampled_from([0, 1, 3, 2, 0x7FFFFFFF]))
    return struct.pack(">I", length)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


_SETTINGS = struct.pack(">I", 0)[1:] + struct.pack(">BBI", 4, 0, 0)
FRAMES = st.one_of(
    st.builds(lambda frames: PREFACE + _SETTINGS + b"".join(frames), st.lists(_frame(), max_size=6)),
    st.builds(bytes.__add__, st.just(PREFACE), st.binary(max_size=100)),
    st.binary(max_size=100),
    st.just(PREFACE + _SETTINGS + (struct.pack(">I", 4)[1:] + struct.pack(">BBII", 3, 0, 1, 8)) * 3000),
)


def over_grpc(address: str) -> Callable[[bytes], Outcome]:
    """Sends bytes to a gRPC port, and afterwards asks its health over another connection."""
    port = int(address.rpartition(":")[2])

    def feed(data: bytes) -> Outcome:
        answer = exchange(port, data)
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=END_SECONDS)
            except grpc.RpcError as error:
                raise Hang(f"the server is not well: {error}") from None
        return Outcome.ANSWERED if len(answer) > 100 else Outcome.REFUSED

    return feed


def http_target(port: int) -> Target:
    return Target("HTTP bytes", HTTP_BYTES, over_http(port))


def grpc_target(address: str) -> Target:
    return Target("gRPC frames", FRAMES, over_grpc(address))
