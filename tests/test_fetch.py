"""Images by URL: what is fetched, and what a URL must not reach."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import openai
import pytest

from services.gateway.addresses import any_address, is_public, resolve
from services.gateway.fetch import Fetch, Fetcher, FetchPolicy
from tests.fakes import expected_sight, soon
from tests.gateways import picture, scene
from ziya.errors import DeadlineExceeded, InvalidRequest

RED = picture("red")


class Site(BaseHTTPRequestHandler):
    """/image, /missing, /large (without end), /slow, and /to?URL, which redirects there."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        getattr(self, path.removeprefix("/"))(query)

    def image(self, query: str) -> None:
        self._head(200, {"Content-Length": str(len(RED))})
        self.wfile.write(RED)

    def missing(self, query: str) -> None:
        self._head(404, {"Content-Length": "0"})

    def large(self, query: str) -> None:
        self._head(200, {})
        try:
            while True:
                self.wfile.write(b"\x89PNG" * 4096)
        except OSError:
            return

    def slow(self, query: str) -> None:
        self._head(200, {"Content-Length": "10"})
        self.server.leaving.wait()  # type: ignore[attr-defined]

    def to(self, query: str) -> None:
        self._head(302, {"Location": query, "Content-Length": "0"})

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.server.hosts.append(self.headers["Host"])  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def site() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.leaving, server.hosts = threading.Event(), []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.leaving.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


async def fetched(
    policy: FetchPolicy, url: str, seconds: float = 30.0, allowed: Callable[[str], bool] = any_address
) -> bytes:
    fetcher = Fetcher(policy, allowed)
    try:
        return await fetcher.get(url, soon(seconds))
    finally:
        await fetcher.close()


OPEN = FetchPolicy(allow=Fetch.ALL, seconds=5.0)


async def test_image_is_fetched_by_name_at_the_checked_address(site: ThreadingHTTPServer) -> None:
    port = site.server_port
    assert await fetched(OPEN, f"http://127.0.0.1:{port}/image") == RED
    assert await fetched(OPEN, f"http://localhost:{port}/to?/image") == RED
    assert site.hosts == [f"127.0.0.1:{port}", f"localhost:{port}", f"localhost:{port}"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/missing", "status 404"),
        ("/large", "larger than 100000 bytes"),
        ("/to?/to?/to?/to?/image", "redirects more than 3 times"),
        ("/to?file:///etc/passwd", "only data:"),
        ("/to?http://user:word@localhost/", "no user"),
        ("/to?http://nowhere.invalid/", "cannot be resolved"),
    ],
)
async def test_bad_answers_are_told(site: ThreadingHTTPServer, path: str, words: str) -> None:
    policy = FetchPolicy(allow=Fetch.ALL, max_bytes=100_000)
    with pytest.raises(InvalidRequest, match=words):
        await fetched(policy, f"http://127.0.0.1:{site.server_port}{path}")


async def test_time_is_bounded_by_the_policy_and_by_the_request(site: ThreadingHTTPServer) -> None:
    url = f"http://127.0.0.1:{site.server_port}/slow"
    with pytest.raises(InvalidRequest, match=r"within 0\.2 seconds"):
        await fetched(FetchPolicy(allow=Fetch.ALL, seconds=0.2), url)
    with pytest.raises(DeadlineExceeded):
        await fetched(OPEN, url, seconds=0.2)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254"]
)
async def test_private_address_is_refused_before_connecting(site: ThreadingHTTPServer, host: str) -> None:
    with pytest.raises(InvalidRequest, match=r"not on the public internet|cannot be resolved"):
        await fetched(OPEN, f"http://{host}:{site.server_port}/image", allowed=is_public)
    assert site.hosts == []  # type: ignore[attr-defined]


async def test_redirect_to_a_private_address_is_refused(site: ThreadingHTTPServer) -> None:
    port = site.server_port
    with pytest.raises(InvalidRequest, match=r"'127\.0\.0\.2' is not on the public internet"):
        await fetched(
            OPEN,
            f"http://127.0.0.1:{port}/to?http://127.0.0.2:{port}/image",
            allowed=lambda address: address == "127.0.0.1",
        )
    assert site.hosts == [f"127.0.0.1:{port}"]  # type: ignore[attr-defined]


async def test_scheme_policy_is_kept() -> None:
    for allow, url in ((Fetch.OFF, "https://example.org/a"), (Fetch.HTTPS, "http://example.org/a")):
        with pytest.raises(InvalidRequest):
            await fetched(FetchPolicy(allow=allow), url)


async def test_resolving_gives_checked_addresses() -> None:
    assert await resolve("8.8.8.8", 443) == ["8.8.8.8"]
    assert "127.0.0.1" in await resolve("localhost", 80, any_address)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("::127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:7f00:1::1", False),
        ("ff0e::1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


async def test_gateway_fetches_what_it_may(site: ThreadingHTTPServer, redis_url: str, tmp_path: Path) -> None:
    parts = [{"type": "image_url", "image_url": {"url": f"http://localhost:{site.server_port}/to?/image"}}]
    async with scene(redis_url, tmp_path, gateway_fetch="all", gateway_fetch_private=True) as here:
        answer = await here.ask(parts)
        assert answer.choices[0].message.content.startswith(f"[{expected_sight(RED)}]")


async def test_gateway_refuses_private_urls_by_default(
    site: ThreadingHTTPServer, redis_url: str, tmp_path: Path
) -> None:
    parts = [{"type": "image_url", "image_url": {"url": f"http://localhost:{site.server_port}/image"}}]
    async with scene(redis_url, tmp_path, gateway_fetch="all") as here:
        with pytest.raises(openai.BadRequestError, match="public internet") as caught:
            await here.ask(parts)
        assert caught.value.code == "invalid_image_url"
