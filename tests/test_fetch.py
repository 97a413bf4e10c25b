"""Images by URL: what is fetched, and what a URL must not reach."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import openai
import pytest

from services.gateway.images.addresses import LookUp, Resolver, any_address, is_public
from services.gateway.images.fetch import Fetch, Fetcher, FetchPolicy
from tests.dns_server import NAME, look_up, naming
from tests.fakes import expected_sight, soon
from tests.gateways import picture, scene
from ziya.errors import DeadlineExceeded, InvalidRequest

RED = picture("red")


class Site(BaseHTTPRequestHandler):
    """/image, /missing, /large and /headers_ (both without end), /slow, /cookie, /packed; /to?URL redirects there."""

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

    def headers_(self, query: str) -> None:
        self._head(200, {}, end=False)
        try:
            while True:
                self.wfile.write(b"X: y\r\n" * 4096)
        except OSError:
            return

    def cookie(self, query: str) -> None:
        self._head(200, {"Content-Length": "1", "Set-Cookie": "who=one; Path=/"})
        self.wfile.write(b"x")

    def packed(self, query: str) -> None:
        body = gzip.compress(bytes(50_000_000))
        self._head(200, {"Content-Length": str(len(body)), "Content-Encoding": "gzip"})
        self.wfile.write(body)

    def to(self, query: str) -> None:
        self._head(302, {"Location": query, "Content-Length": "0"})

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def _head(self, status: int, headers: dict[str, str], *, end: bool = True) -> None:
        self.server.hosts.append(self.headers["Host"])  # type: ignore[attr-defined]
        self.server.cookies.append(self.headers["Cookie"])  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers() if end else self.flush_headers()


@pytest.fixture
def site() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.leaving, server.hosts, server.cookies = threading.Event(), [], []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.leaving.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


async def fetched(
    policy: FetchPolicy,
    url: str,
    seconds: float = 30.0,
    allowed: Callable[[str], bool] = any_address,
    look_up: LookUp = socket.getaddrinfo,
) -> bytes:
    fetcher = Fetcher(policy, Resolver(allowed, look_up))
    try:
        return await fetcher.get(url, soon(seconds), fetcher.budget())
    finally:
        fetcher.close()


OPEN = FetchPolicy(allow=Fetch.ALL, seconds=5.0, any_port=True)


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
        ("/to?http://nowhere.invalid/", "not found on the public internet"),
        ("/to?http://[::1", "could not be fetched"),
        ("/to?data:,x", "could not be fetched"),
        ("/to?http://%00/", "not found on the public internet"),
        ("/to?http://localhost:99999/", "no such port"),
        ("/headers_", "could not be fetched"),
    ],
)
async def test_bad_answers_are_told(site: ThreadingHTTPServer, path: str, words: str) -> None:
    policy = FetchPolicy(allow=Fetch.ALL, max_bytes=100_000, any_port=True)
    with pytest.raises(InvalidRequest, match=words):
        await fetched(policy, f"http://127.0.0.1:{site.server_port}{path}")


async def test_time_is_bounded_by_the_policy_and_by_the_request(site: ThreadingHTTPServer) -> None:
    url = f"http://127.0.0.1:{site.server_port}/slow"
    with pytest.raises(InvalidRequest, match=r"within 0\.2 seconds"):
        await fetched(FetchPolicy(allow=Fetch.ALL, seconds=0.2, any_port=True), url)
    with pytest.raises(DeadlineExceeded):
        await fetched(OPEN, url, seconds=0.2)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "localhost.", "LOCALHOST", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "0"),
        *("[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::]", "[64:ff9b::7f00:1]", "169.254.169.254"),
        *("１２７.0.0.1", "ⓛocalhost", "127.0.0.1.nip.invalid", "a" * 300),
    ],
)
async def test_private_address_is_refused_before_connecting(site: ThreadingHTTPServer, host: str) -> None:
    with pytest.raises(InvalidRequest, match=r"not found on the public internet|not a valid URL"):
        await fetched(OPEN, f"http://{host}:{site.server_port}/image", allowed=is_public)
    assert site.hosts == []  # type: ignore[attr-defined]


async def test_redirect_to_a_private_address_is_refused(site: ThreadingHTTPServer) -> None:
    port = site.server_port
    with pytest.raises(InvalidRequest, match=r"'127\.0\.0\.2' is not found on the public internet"):
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
    assert await Resolver().resolve("8.8.8.8", 443) == ["8.8.8.8"]
    assert "127.0.0.1" in await Resolver(any_address).resolve("localhost", 80)


async def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    def both(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", (address, port)) for address in ("8.8.8.8", "10.0.0.1")]

    with pytest.raises(InvalidRequest, match="public internet"):
        await Resolver(look_up=both).resolve("mixed.example", 443)


async def test_a_name_that_changes_its_address_is_asked_once_a_hop(site: ThreadingHTTPServer) -> None:
    """DNS rebinding: what was checked is what is connected to, and a redirect is checked anew."""
    port = site.server_port
    async with naming() as names:

        def rebound(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
            found = look_up(names.port, host, port)
            names.addresses = ["127.0.0.2"]
            return found

        for path, hops in (("/image", 1), (f"/to?http://{NAME}:{port}/image", 2)):
            names.addresses, names.asked = ["127.0.0.1"], 0
            asking = fetched(
                OPEN, f"http://{NAME}:{port}{path}", allowed=lambda address: address == "127.0.0.1", look_up=rebound
            )
            if hops == 1:
                assert await asking == RED
            else:
                with pytest.raises(InvalidRequest, match="public internet"):
                    await asking
            assert names.asked == hops
    assert site.hosts == [f"{NAME}:{port}"] * 2  # type: ignore[attr-defined]


async def test_name_servers_that_never_answer_hold_up_nobody_else() -> None:
    answers = threading.Event()

    def silent(*_: object, **__: object) -> list[tuple[object, ...]]:
        answers.wait()
        return []

    resolver = Resolver(look_up=silent)
    waiting = [asyncio.create_task(resolver.resolve("slow.example", 443)) for _ in range(100)]
    await asyncio.sleep(0)
    try:
        # Base64, hashes and large bodies are done in asyncio's own threads.
        assert await asyncio.wait_for(asyncio.to_thread(sum, (1, 2)), 20) == 3
    finally:
        answers.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        resolver.close()


async def test_ports_of_other_services_are_not_for_images(site: ThreadingHTTPServer) -> None:
    for url in (f"http://127.0.0.1:{site.server_port}/image", "http://127.0.0.1:25/", "https://127.0.0.1:80/"):
        with pytest.raises(InvalidRequest, match="alone, not"):
            await fetched(FetchPolicy(allow=Fetch.ALL), url)
    assert site.hosts == []  # type: ignore[attr-defined]


async def test_what_is_packed_stays_packed(site: ThreadingHTTPServer) -> None:
    """50 MB of zeros in 50 KB: never unpacked, and so within any bound."""
    data = await fetched(OPEN, f"http://127.0.0.1:{site.server_port}/packed")
    assert data[:2] == b"\x1f\x8b"
    assert len(data) < 100_000


async def test_no_cookie_is_kept_for_the_next(site: ThreadingHTTPServer) -> None:
    fetcher = Fetcher(OPEN, Resolver(any_address))
    try:
        for path in ("cookie", "image"):
            await fetcher.get(f"http://127.0.0.1:{site.server_port}/{path}", soon(), fetcher.budget())
    finally:
        fetcher.close()
    assert site.cookies == [None, None]  # type: ignore[attr-defined]


async def test_the_images_of_a_request_are_bounded_together(site: ThreadingHTTPServer) -> None:
    policy = FetchPolicy(allow=Fetch.ALL, any_port=True, max_request_bytes=3 * len(RED))
    fetcher = Fetcher(policy, Resolver(any_address))
    url, budget = f"http://127.0.0.1:{site.server_port}/image", fetcher.budget()
    try:
        for _ in range(3):
            assert await fetcher.get(url, soon(), budget) == RED
        with pytest.raises(InvalidRequest, match="together"):
            await fetcher.get(url, soon(), budget)
    finally:
        fetcher.close()


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
        ("192.88.99.1", False),
        ("168.63.129.16", False),
        ("100.100.100.200", False),
        ("192.0.0.192", False),
        ("198.18.0.1", False),
        ("203.0.113.1", False),
        ("240.0.0.1", False),
        ("64:ff9b:1::7f00:1", False),
        ("2001:db8::1", False),
        ("3fff::1", False),
        ("fec0::1", False),
        ("fd00:ec2::254", False),
        ("2606:4700::5efe:7f00:1", False),
        ("2606:4700::200:5efe:7f00:1", False),
        ("::ffff:0:127.0.0.1", False),
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
    parts = [{"type": "image_url", "image_url": {"url": "http://localhost/image"}}]
    async with scene(redis_url, tmp_path, gateway_fetch="all") as here:
        with pytest.raises(openai.BadRequestError, match="public internet") as caught:
            await here.ask(parts)
        assert caught.value.code == "invalid_image_url"
