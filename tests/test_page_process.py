"""When there is a chat page, and that nothing is left of it when its gateway is killed."""

from __future__ import annotations

import asyncio
import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from starlette.types import Message, Receive, Scope, Send

from services.gateway.page.facts import PageFacts
from services.gateway.page.guard import Guard
from services.gateway.page.process import PageProcess
from services.gateway.page.proxy import PageProxy
from tests.gateways import picture, until
from tests.pages import EXAMPLES
from ziya.errors import Unavailable

OWNER = """
import asyncio
from services.gateway.page.facts import PageFacts
from services.gateway.page.process import PageProcess

async def main():
    page = PageProcess(PageFacts("m", False, 1, 1.0, 8, 8, 0.0, 1.0))
    page.at("127.0.0.1", 9)
    print(await page.socket(), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
WITHOUT_GRADIO = """
import sys
from importlib.machinery import PathFinder
class Without:
    find_spec = staticmethod(lambda name, *more: None if name == "gradio" else PathFinder.find_spec(name, *more))
sys.meta_path = [one if one is not PathFinder else Without for one in sys.meta_path]
from services.gateway.page.process import wanted
print(wanted(None), wanted(False))
try:
    wanted(True)
except ValueError as error:
    print(error)
"""

THEME: Scope = {
    "type": "http",
    "method": "GET",
    "path": "/theme.css",
    "raw_path": b"/theme.css",
    "query_string": b"",
    "headers": [(b"host", b"page")],
}


def test_a_gateway_that_is_killed_leaves_no_page() -> None:
    gateway = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert gateway.stdout is not None
    socket = Path(gateway.stdout.readline().strip())
    [page] = psutil.Process(gateway.pid).children()
    gateway.kill()
    gateway.wait()
    gateway.stdout.close()
    page.wait(20)
    assert not socket.parent.exists()


def test_without_gradio_it_is_off_and_asked_for_it_says_how_to_get_it() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_GRADIO], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "False False"
    assert second == "ZIYA_GATEWAY_PAGE is true, and gradio is not installed: pip install 'ziya-visual[page]'"


def test_the_gateway_itself_never_imports_gradio() -> None:
    code = "import sys, services.gateway.app; print(sorted({'gradio', 'fastapi', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_pictures_of_visitors_go_and_examples_stay() -> None:
    page = PageProcess(PageFacts("m", False, 1 << 20, 1.0, 8, 8, 0.0, 1.0, examples=str(EXAMPLES), keep_seconds=1))
    page.at("127.0.0.1", 9)
    try:
        transport = httpx.AsyncHTTPTransport(uds=await page.socket())
        async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
            shown = re.findall(r"/gradio_api/file=/[^\"\\]+\.webp", (await client.get("/")).text)
            assert len(set(shown)) == 3
            files = {"files": ("red.png", picture("red"), "image/png")}
            [path] = (await client.post("/gradio_api/upload", files=files)).json()
            assert Path(path).is_file()
            await until(lambda: asyncio.to_thread(lambda: not Path(path).exists()))
            for example in shown:
                assert (await client.get(example)).is_success
    finally:
        await page.stop()


async def test_nothing_is_taken_while_too_much_is_kept(tmp_path: Path) -> None:
    async def takes(scope: object, receive: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"taken"})

    (tmp_path / "kept").write_bytes(bytes(100))
    for most, status in ((100, 200), (99, 507)):
        transport = httpx.ASGITransport(Guard(takes, tmp_path, most))
        async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
            assert (await client.post("/gradio_api/upload")).status_code == status


async def test_a_page_that_cannot_start_is_told_and_not_tried_at_once(tmp_path: Path) -> None:
    page = PageProcess(PageFacts("m", False, 1, 1.0, 8, 8, 0.0, 1.0, examples=str(tmp_path)))
    with pytest.raises(Unavailable, match="being started"):
        await page.socket(patience=0.01)
    for _ in range(2):
        with pytest.raises(Unavailable, match="chat page"):
            await page.socket()
    assert not _children(str(tmp_path))
    await page.stop()
    with pytest.raises(Unavailable, match="stopping"):
        await page.socket()


async def test_a_gateway_that_stops_does_not_wait_for_its_page() -> None:
    page = PageProcess(PageFacts("one that is being started", False, 1, 1.0, 8, 8, 0.0, 1.0))
    waiting = asyncio.create_task(page.socket())
    await until(lambda: asyncio.to_thread(lambda: bool(_children("being started"))))
    await page.stop()
    assert not _children("being started")
    with pytest.raises(Unavailable, match="stopping"):
        await waiting


async def test_visitors_who_leave_at_any_moment_keep_no_connection_to_the_page() -> None:
    page = PageProcess(PageFacts("one that is left", False, 1, 1.0, 8, 8, 0.0, 1.0))
    page.at("127.0.0.1", 9)
    socket = await page.socket()
    [process] = _children("one that is left")
    proxy = PageProxy(page, 8)
    for pace, steps in itertools.product(range(4), range(16)):
        await proxy(THEME, *_left_after(steps, pace))
    open_ones = [one for one in await asyncio.to_thread(process.connections, "unix") if one.laddr == socket]
    assert len(open_ones) <= 2  # the one that listens, and the one that was used
    await proxy.close()


def _left_after(steps: int, pace: int) -> tuple[Receive, Send]:
    """A visitor who takes `pace` steps of the loop for a piece, and leaves `steps` after the answer has begun."""
    begun = asyncio.Event()

    async def receive() -> Message:
        await begun.wait()
        for _ in range(steps):
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        begun.set()
        for _ in range(pace):
            await asyncio.sleep(0)

    return receive, send


def _children(word: str) -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if any(word in part for part in one.cmdline())]
