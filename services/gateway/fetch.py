"""Fetching an `image_url` without becoming anybody's tool inside the network.

The host is resolved and checked (addresses.py), the connection goes to the checked address with the name
only in Host and SNI, every redirect starts over, proxies from the environment are ignored, and bytes and
time are bounded. What comes back is judged by its own bytes, never by its Content-Type.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import httpx

from services.gateway.addresses import is_public, resolve
from ziya.errors import DeadlineExceeded, InvalidRequest

_REDIRECTS = (301, 302, 303, 307, 308)


class Fetch(StrEnum):
    """Which URLs are fetched for clients."""

    OFF = "off"
    HTTPS = "https"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """Bounds of a fetch: bytes of the body, seconds in all, redirects followed."""

    allow: Fetch = Fetch.HTTPS
    max_bytes: int = 20 << 20
    seconds: float = 10.0
    max_redirects: int = 3


class Fetcher:
    """Fetches images by URL under one policy; `allowed` judges addresses, at every redirect anew."""

    def __init__(self, policy: FetchPolicy, allowed: Callable[[str], bool] = is_public) -> None:
        self._policy = policy
        self._allowed = allowed
        # No connection is kept: one opened for a.example must not be reused for b.example at the same address.
        self._client = httpx.AsyncClient(
            trust_env=False, follow_redirects=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    async def get(self, url: str, deadline: float) -> bytes:
        """The bytes behind `url`. Raises InvalidRequest (a sentence without the URL) or DeadlineExceeded."""
        left = deadline - time.time()
        try:
            async with asyncio.timeout(min(self._policy.seconds, left)):
                return await self._follow(url)
        except TimeoutError:
            if left <= self._policy.seconds:
                raise DeadlineExceeded("the request's time was over while its image was fetched") from None
            raise InvalidRequest(f"the image did not arrive within {self._policy.seconds:g} seconds") from None

    async def close(self) -> None:
        await self._client.aclose()

    async def _follow(self, text: str) -> bytes:
        url = self._checked(text)
        for _ in range(self._policy.max_redirects + 1):
            answer = await self._get(url)
            if isinstance(answer, bytes):
                return answer
            url = self._checked(str(url.join(answer)))
        raise InvalidRequest(f"the URL redirects more than {self._policy.max_redirects} times")

    def _checked(self, text: str) -> httpx.URL:
        if self._policy.allow is Fetch.OFF:
            raise InvalidRequest("this server does not fetch images; send the image as a data: URL")
        schemes = ("https",) if self._policy.allow is Fetch.HTTPS else ("https", "http")
        try:
            url = httpx.URL(text)
        except (httpx.InvalidURL, UnicodeError):
            raise InvalidRequest("not a valid URL") from None
        if url.scheme not in schemes:
            raise InvalidRequest(f"only data:, {' and '.join(f'{s}:' for s in schemes)} URLs are accepted")
        if not url.host or url.userinfo:
            raise InvalidRequest("the URL must name a host, and no user")
        return url

    async def _get(self, url: httpx.URL) -> bytes | str:
        """The body of a 200, or the Location of a redirect."""
        host, port = url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80)
        failure: httpx.HTTPError | None = None
        for address in await resolve(host, port, self._allowed):
            request = self._client.build_request(
                "GET",
                url.copy_with(host=address),
                headers={"Host": url.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"},
                extensions={"sni_hostname": host},
            )
            try:
                response = await self._client.send(request, stream=True)
            except httpx.ConnectError as error:
                failure = error
                continue
            except httpx.HTTPError as error:
                raise InvalidRequest(f"the image could not be fetched ({type(error).__name__})") from None
            try:
                return await self._read(response)
            except httpx.HTTPError as error:
                raise InvalidRequest(f"the image could not be fetched ({type(error).__name__})") from None
            finally:
                await response.aclose()
        raise InvalidRequest("the image could not be fetched (no connection)") from failure

    async def _read(self, response: httpx.Response) -> bytes | str:
        if response.status_code in _REDIRECTS and "location" in response.headers:
            return str(response.headers["location"])
        if response.status_code != httpx.codes.OK:
            raise InvalidRequest(f"the image could not be fetched (HTTP status {response.status_code})")
        body = bytearray()
        async for block in response.aiter_raw():
            body += block
            if len(body) > self._policy.max_bytes:
                raise InvalidRequest(f"the image is larger than {self._policy.max_bytes} bytes")
        return bytes(body)
