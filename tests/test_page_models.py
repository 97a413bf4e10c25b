"""The chat page before a server with several models: a choice, and what is asked goes to the chosen one."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from services.gateway.page.facts import PageFacts
from services.gateway.page.process import PageProcess
from tests.chromium import WAIT, Visit, needs_chromium, visit
from tests.gateways import picture
from tests.openai_server import OpenAIServer, openai_server
from tests.pages import browser

__all__ = ["browser"]
pytestmark = [
    needs_chromium,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("page"),
    pytest.mark.timeout(240),
]
MODELS = ("ziya-visual", "ziya-visual:herbs", "ziya-visual:maps")
SAID = "a b c"  # what the server answers


@dataclass(frozen=True)
class Page:
    """The page's own process, and the server that it asks."""

    url: str
    server: OpenAIServer


@asynccontextmanager
async def page(models: Sequence[str]) -> AsyncIterator[Page]:
    async with openai_server() as server:
        server.models = models
        process = PageProcess(PageFacts(models[0], False, 1 << 20, 30.0, 512, 64, 0.0, 1.0))
        process.at("127.0.0.1", server.port)
        try:
            async with relay(await process.socket()) as url:
                yield Page(url, server)
        finally:
            await process.stop()


@asynccontextmanager
async def relay(socket: str) -> AsyncIterator[str]:
    """A port for the browser, which opens no Unix sockets."""
    under_way: set[asyncio.Task[None]] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass  # the tab has gone, or the test is over
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, ahead = await asyncio.open_unix_connection(socket)
        for task in (asyncio.create_task(pipe(reader, ahead)), asyncio.create_task(pipe(behind, writer))):
            under_way.add(task)
            task.add_done_callback(under_way.discard)

    server = await asyncio.start_server(both, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(under_way):
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def choose(tab: Visit, name: str) -> None:
    """As a person does: opens the list and clicks."""
    await tab.page.get_by_label("Model", exact=True).click()
    await tab.page.get_by_role("option", name=name, exact=True).click()
    await expect(tab.page.get_by_label("Model", exact=True)).to_have_value(name)


async def answered(tab: Visit, question: str, turns: int) -> None:
    await tab.ask(question)
    await expect(tab.page.locator("#chat .bot.message")).to_have_count(turns, timeout=WAIT)
    await tab.sees("3 written", "#times")
    await tab.is_free()


def url_of(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def told(body: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """A request's messages: who, and the pictures' URLs and texts in their order."""
    return [
        (
            one["role"],
            [one["content"]]
            if isinstance(one["content"], str)
            else [part["text"] if part["type"] == "text" else part["image_url"]["url"] for part in one["content"]],
        )
        for one in body["messages"]
    ]


async def test_turns_with_pictures_go_on_with_the_model_that_is_chosen(browser: Browser) -> None:
    first, second = picture("green", 32), picture("purple", 32)
    async with page(MODELS) as here, visit(browser, here.url) as tab:
        await tab.page.get_by_text("Parameters").click()
        await tab.upload(first)
        await answered(tab, "what is it?", 1)
        await choose(tab, "ziya-visual:maps")
        await answered(tab, "and its colour?", 2)
        await choose(tab, "ziya-visual:herbs")
        await tab.upload(second)
        await answered(tab, "and this one?", 3)
        await choose(tab, "ziya-visual")
        await tab.page.click("#chat button[title=Retry]")
        while len(here.server.bodies) < 4:
            await asyncio.sleep(0.02)
        await tab.is_free()
    bodies = here.server.bodies
    assert [body["model"] for body in bodies] == [
        "ziya-visual",
        "ziya-visual:maps",
        "ziya-visual:herbs",
        "ziya-visual",
    ]
    turns = [
        ("user", [url_of(first), "what is it?"]),
        ("assistant", [SAID]),
        ("user", ["and its colour?"]),
        ("assistant", [SAID]),
        ("user", [url_of(second), "and this one?"]),
    ]
    assert [told(body) for body in bodies] == [turns[:1], turns[:3], turns, turns]


async def test_one_model_is_no_choice(browser: Browser) -> None:
    async with page(MODELS[:1]) as here, visit(browser, here.url) as tab:
        await tab.page.get_by_text("Parameters").click()
        await expect(tab.page.get_by_label("Temperature").first).to_be_visible(timeout=WAIT)
        await expect(tab.page.get_by_label("Model", exact=True)).to_have_count(0)
        await answered(tab, "what?", 1)
    assert [body["model"] for body in here.server.bodies] == ["ziya-visual"]
