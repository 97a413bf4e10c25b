"""From an image as it was asked for to checked bytes and their content id.

The header is inspected before anything else is done, so that a bomb or a text file costs nothing, and
large images are hashed and decoded from base64 in a thread: SHA-256 releases the interpreter, and one
20 MiB upload must not delay the words of every other stream.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from services.gateway.dialogue import ImageSource
from services.gateway.images.fetch import Budget, Fetcher
from services.gateway.together import together
from ziya import images, keys, tracing
from ziya.errors import BadField, InvalidImage, InvalidRequest

_THREAD_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Picture:
    """An image with its id (SHA-256 of the file); `data` is empty when the client sent only the id."""

    image_id: str
    data: bytes
    where: str


class ImageOpener:
    """Opens image sources. `limits` bound bytes and pixels of each."""

    def __init__(self, fetcher: Fetcher, limits: images.ImageLimits) -> None:
        self._fetcher = fetcher
        self._limits = limits

    async def open_all(self, sources: Sequence[ImageSource], deadline: float) -> list[Picture]:
        """All images, in order; fetches run side by side. Raises BadField naming the first bad one."""
        budget = self._fetcher.budget()
        return await together([self._open(source, deadline, budget) for source in sources])

    async def _open(self, source: ImageSource, deadline: float, budget: Budget) -> Picture:
        try:
            if source.image_id:
                return Picture(source.image_id, b"", source.where)
            if source.url.startswith("data:"):
                return await self._in_thread(source, source.url)
            data = source.data if source.data is not None else await self._fetch(source.url, deadline, budget)
            return await self._in_thread(source, data)
        except InvalidRequest as error:
            code = "invalid_image" if isinstance(error, InvalidImage) else "invalid_image_url"
            raise BadField(f"{source.where}: {error.message}", source.where, code) from None

    async def _fetch(self, url: str, deadline: float, budget: Budget) -> bytes:
        """The URL itself is not told: it may hold a signature."""
        with tracing.span("image.fetch", kind=tracing.Kind.CLIENT) as span:
            data = await self._fetcher.get(url, deadline, budget)
            span.set({"ziya.bytes": len(data)})
        return data

    async def _in_thread(self, source: ImageSource, data: bytes | str) -> Picture:
        if len(data) <= _THREAD_BYTES:
            return self._check(source, data)
        return await asyncio.to_thread(self._check, source, data)

    def _check(self, source: ImageSource, given: bytes | str) -> Picture:
        data = given if isinstance(given, bytes) else decode_data_url(given, self._limits.max_bytes)
        images.inspect(data, self._limits)
        return Picture(keys.image_id(data), data, source.where)


def decode_data_url(url: str, max_bytes: int) -> bytes:
    """The bytes of `data:<type>;base64,<data>`. Raises InvalidImage."""
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise InvalidImage("a data: URL must look like data:image/png;base64,…")
    if len(body) * 3 // 4 > max_bytes + 2:
        raise InvalidImage(f"the image is larger than {max_bytes} bytes")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage("the data: URL is not valid base64") from None
