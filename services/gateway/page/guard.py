"""Around gradio: what its page may load, and how much its visitors may leave behind.

gradio's HTML names pictures and links elsewhere. They are taken out, and a Content-Security-Policy forbids the browser
everything that is not of this server, whatever a later gradio, a theme or an answer of the model asks for.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UPLOAD = "/gradio_api/upload"
# At once; each may bring a body more than may be kept.
MAX_UPLOADS = 4
_SCRIPT = re.compile(rb"<script\b([^>]*)>(.*?)</script>", re.DOTALL)
_OUTSIDE = re.compile(rb"<(?:meta|link|script)\b[^>]*\b(?:content|href|src)=\"https?://[^>]*>(?:\s*</script>)?")


class Guard:
    """Wraps gradio's application. `files` is the folder of uploads; with more than `most` bytes in it none is taken."""

    def __init__(self, app: ASGIApp, files: Path, most: int) -> None:
        self._app, self._files, self._most = app, files, most
        self._uploads = asyncio.Semaphore(MAX_UPLOADS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == UPLOAD:
            await self._upload(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == "/":
            await self._home(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._uploads:
            if await asyncio.to_thread(size_of, self._files) > self._most:
                await PlainTextResponse("too many pictures are kept here; try later", 507)(scope, receive, send)
                return
            await self._app(scope, receive, send)

    async def _home(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Holds the page back until it is whole: its policy names the scripts that stand in it."""
        start: Message = {}
        body = b""

        async def holding(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if not message.get("more_body", False):
                clean = without_outside(body)
                headers = MutableHeaders(scope=start)
                headers["content-length"] = str(len(clean))
                headers["content-security-policy"] = policy(clean)
                await send(start)
                await send({"type": "http.response.body", "body": clean})

        headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        await self._app({**scope, "headers": headers}, receive, holding)


def size_of(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def without_outside(html: bytes) -> bytes:
    """The page without elements that name another server."""
    return _OUTSIDE.sub(b"", html)


def policy(html: bytes) -> str:
    """Scripts are those of this server, and those in the page by their hashes; nothing comes from elsewhere."""
    inside = [text for head, text in _SCRIPT.findall(html) if b"src=" not in head and text]
    hashes = [base64.b64encode(hashlib.sha256(text).digest()).decode() for text in inside]
    scripts = " ".join(["'self'", *(f"'sha256-{one}'" for one in hashes)])
    rules = {
        "default-src": "'none'",
        "script-src": scripts,
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": "'self'",
        "manifest-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'self'",
        "frame-ancestors": "'self'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())
