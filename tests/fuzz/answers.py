"""Hostile answers of a web server that a client's image_url points to."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from services.gateway.images.addresses import Resolver, any_address
from services.gateway.images.fetch import Fetch, Fetcher, FetchPolicy
from tests.fuzz.check import Outcome, Target
from tests.fuzz.strategies import mutated
from ziya.errors import InvalidRequest

SECONDS, BYTES = 1.0, 100_000
_BODY = b"\x89PNG\r\n\x1a\n" + bytes(64)
_GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
_HEADERS = [
    b"Content-Length: 5",
    b"Content-Length: 99999999999999999999",
    b"Content-Length: -1",
    b"Transfer-Encoding: chunked",
    b"Content-Encoding: gzip",
    b"Content-Encoding: br, gzip, deflate",
    b"Set-Cookie: a=b; Domain=.localhost",
    b"Connection: upgrade\r\nUpgrade: h2c",
    b"X: " + b"y" * 200_000,
    b"A: b\r\n" * 20_000,
    b"Content-Type: \xff\xfe",
]
_PLACES = [
    b"/",
    b"//",
    b"http://[::1",
    b"file:///etc/passwd",
    b"http://127.0.0.2:1/",
    b"http://a:b@c/",
    b"\xff\xfe",
    b"data:,x",
]
_PLACES += [
    b"http://127.0.0.1:99999/",
    b"http://x\\@127.0.0.1/",
    b"?" + b"a" * 70_000,
    b"gopher://127.0.0.1/",
    b"http://\xe2\x92\x88/",
]


@st.composite
def _answer(draw: DrawFn) -> bytes:
    status = draw(
        st.sampled_from(
            [b"200 OK", b"200", b"302 Found", b"308 x", b"100 Continue", b"103 x", b"404 x", b"999 x", b"-1 x"]
        )
    )
    headers = draw(st.lists(st.sampled_from(_HEADERS), max_size=3))
    headers += [b"Location: " + place for place in draw(st.lists(st.sampled_from(_PLACES), max_size=1))]
    body = draw(
        st.sampled_from([b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"fffffffff\r\n", gzip.compress(bytes(10**6))])
    )
    first = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 300]))
    return first + b"\r\n".join([b"HTTP/1.1 " + status, *headers, b"", b""]) + body


ANSWERS = st.one_of(_answer(), mutated(_GOOD), st.binary(max_size=100), st.just(_GOOD + bytes(500_000)))


class _Server:
    """Says `answer` to whoever has asked, and closes."""

    def __init__(self) -> None:
        self.answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                client.settimeout(5)
                try:
                    client.recv(65536)
                    client.sendall(self.answer)
                except OSError:
                    pass  # it has heard enough

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@contextmanager
def target() -> Iterator[Target]:
    """Fetches from a server of its own."""
    server = _Server()
    policy = FetchPolicy(allow=Fetch.ALL, max_bytes=BYTES, seconds=SECONDS, any_port=True)

    async def fetch() -> bytes:
        fetcher = Fetcher(policy, Resolver(any_address))
        try:
            return await fetcher.get(f"http://127.0.0.1:{server.port}/x", time.time() + 30, fetcher.budget())
        finally:
            fetcher.close()

    def feed(answer: bytes) -> Outcome:
        server.answer = answer
        try:
            data = asyncio.run(fetch())
        except InvalidRequest:
            return Outcome.REFUSED
        assert len(data) <= BYTES
        return Outcome.ANSWERED

    try:
        yield Target("fetched answer", ANSWERS, feed)
    finally:
        server.close()
