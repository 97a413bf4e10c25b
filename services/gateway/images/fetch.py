"""Fetching an `image_url` without becoming anybody's tool inside the network.

The host is resolved and checked (addresses.py), the connection goes to the checked address with the name
only in Host and SNI, every redirect starts over, proxies from the environment are ignored, and ports, bytes
(of an image, and of all images of a request) and time are bounded. What comes back is judged by its own bytes,
never by its Content-Type, and is never decompressed.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from enum import StrEnum
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from services.gateway.images.addresses import Resolver
from ziya.errors import DeadlineExceeded, InvalidRequest

_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"https": 443, "http": 80}
# httpx looks at the place of a redirect that it is not to follow, and not all it finds wrong there is an HTTPError.
_FAILURES = (httpx.HTTPError, httpx.InvalidURL)


class Fetch(StrEnum):
    """Which URLs are fetched for clients."""

    OFF = "off"
    HTTPS = "https"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """Bounds of a fetch: bytes of the body, and of all bodies for one request, seconds in all, redirects followed.

    `any_port`: not only those of https and http. A port of something else could take an HTTP request for its own words.
    """

    allow: Fetch = Fetch.HTTPS
    max_bytes: int = 20 << 20
    seconds: float = 10.0
    max_redirects: int = 3
    max_request_bytes: int = 64 << 20
    any_port: bool = False


class Budget:
    """What the images of one request may still weigh together, in bytes."""

    def __init__(self, left: int) -> None:
        self._total = self._left = left

    def spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise InvalidRequest(f"the images of the request have more than {self._total} bytes together")


class Fetcher:
    """Fetches images by URL under one policy; the resolver judges addresses, at every redirect anew."""

    def __init__(self, policy: FetchPolicy, resolver: Resolver | None = None) -> None:
        self._policy = policy
        self._resolver = resolver or Resolver()
        self._trusted = httpx.create_ssl_context(trust_env=False)

    def budget(self) -> Budget:
        """For all the images of one request."""
        return Budget(self._policy.max_request_bytes)

    async def get(self, url: str, deadline: float, budget: Budget) -> bytes:
        """The bytes behind `url`. Raises InvalidRequest (a sentence without the URL) or DeadlineExceeded."""
        left = deadline - time.time()
        try:
            async with asyncio.timeout(min(self._policy.seconds, left)), self._client() as client:
                return await self._follow(client, url, budget)
        except TimeoutError:
            if left <= self._policy.seconds:
                raise DeadlineExceeded("the request's time was over while its image was fetched") from None
            raise InvalidRequest(f"the image did not arrive within {self._policy.seconds:g} seconds") from None

    def close(self) -> None:
        self._resolver.close()

    def _client(self) -> httpx.AsyncClient:
        """For one image: a client that is cancelled while it closes a connection never gets its place back."""
        return httpx.AsyncClient(
            verify=self._trusted,
            trust_env=False,
            follow_redirects=False,
            # No connection is kept: one opened for a.example must not be reused for b.example at the same address.
            limits=httpx.Limits(max_keepalive_connections=0),
            # What a server sets is not ours to keep.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    async def _follow(self, client: httpx.AsyncClient, text: str, budget: Budget) -> bytes:
        url = self._checked(text)
        for _ in range(self._policy.max_redirects + 1):
            answer = await self._get(client, url, budget)
            if isinstance(answer, bytes):
                return answer
            url = self._checked(answer, url)
        raise InvalidRequest(f"the URL redirects more than {self._policy.max_redirects} times")

    def _checked(self, text: str, base: httpx.URL | None = None) -> httpx.URL:
        if self._policy.allow is Fetch.OFF:
            raise InvalidRequest("this server does not fetch images; send the image as a data: URL")
        schemes = ("https",) if self._policy.allow is Fetch.HTTPS else ("https", "http")
        try:
            url = httpx.URL(text) if base is None else base.join(text)
            host = url.raw_host.decode("ascii")
        except (httpx.InvalidURL, UnicodeError):
            raise InvalidRequest("not a valid URL") from None
        if (url.port or 0) > 65535:
            raise InvalidRequest("not a valid URL: there is no such port")
        if url.scheme not in schemes:
            raise InvalidRequest(f"only data:, {' and '.join(f'{s}:' for s in schemes)} URLs are accepted")
        if not host or url.userinfo:
            raise InvalidRequest("the URL must name a host, and no user")
        if url.port not in (None, _PORTS[url.scheme]) and not self._policy.any_port:
            raise InvalidRequest(f"images are fetched from port {_PORTS[url.scheme]} alone, not {url.port}")
        return url

    async def _get(self, client: httpx.AsyncClient, url: httpx.URL, budget: Budget) -> bytes | str:
        """The body of a 200, or the Location of a redirect."""
        host, port = url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme]
        failure: httpx.HTTPError | None = None
        for address in await self._resolver.resolve(host, port):
            request = client.build_request(
                "GET",
                url.copy_with(host=address),
                headers={"Host": url.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"},
                extensions={"sni_hostname": host},
            )
            try:
                response = await client.send(request, stream=True)
            except httpx.ConnectError as error:
                failure = error
                continue
            except _FAILURES as error:
                raise InvalidRequest(f"the image could not be fetched ({type(error).__name__})") from None
            try:
                return await self._read(response, budget)
            except _FAILURES as error:
                raise InvalidRequest(f"the image could not be fetched ({type(error).__name__})") from None
            finally:
                await response.aclose()
        raise InvalidRequest("the image could not be fetched (no connection)") from failure

    async def _read(self, response: httpx.Response, budget: Budget) -> bytes | str:
        if response.status_code in _REDIRECTS and "location" in response.headers:
            return str(response.headers["location"])
        if response.status_code != httpx.codes.OK:
            raise InvalidRequest(f"the image could not be fetched (HTTP status {response.status_code})")
        body = bytearray()
        async for block in response.aiter_raw():
            body += block
            budget.spend(len(block))
            if len(body) > self._policy.max_bytes:
                raise InvalidRequest(f"the image is larger than {self._policy.max_bytes} bytes")
        return bytes(body)
