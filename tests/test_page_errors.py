"""What a visitor of the chat page reads when there is no answer: a sentence, and the next question works."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest
from playwright.async_api import Browser, expect

from tests.chromium import WAIT, needs_chromium, visit
from tests.fakes import Gate
from tests.gateways import WORDS, Scene, picture, scene, until
from tests.pages import browser, here, shared
from ziya.errors import Internal

__all__ = ["browser", "here", "shared"]
pytestmark = [
    needs_chromium,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("page"),
    pytest.mark.timeout(240),
]


async def test_a_backend_that_is_down_is_told_and_retry_works_when_it_is_back(here: Scene, browser: Browser) -> None:
    await here.behind.triton_server.kill()
    async with visit(browser, here.url, language="zh-CN") as tab:
        await tab.ask("有人吗？")
        await tab.sees("服务的一部分无法访问")
        told = await tab.reads()
        assert "Traceback" not in told
        assert "127.0.0.1" not in told
        await here.behind.triton_server.start()
        await tab.is_free()
        await tab.page.click("#chat button[title=重试]")
        await tab.sees(WORDS)
    assert "无法访问" not in "".join(here.behind.triton.asked[-1].texts)


async def test_an_answer_that_breaks_off_keeps_what_came(here: Scene, browser: Browser) -> None:
    here.behind.triton.late_error = Internal("the engine fell over")
    async with visit(browser, here.url) as tab:
        await tab.ask("begin")
        await tab.sees("你好，")
        await tab.sees("The answer broke off: the engine fell over")
        here.behind.triton.late_error = None
        await tab.is_free()
        await tab.ask("again")
        await tab.sees(WORDS)
    texts = "".join(here.behind.triton.asked[-1].texts)
    assert "begin" in texts
    assert "你好，" in texts
    assert "broke off" not in texts


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("picture.png", b"not a picture at all", "picture.png is not an image that can be read"),
        ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "page.svg is not an image that can be read"),
    ],
)
async def test_what_is_no_picture_is_named(
    here: Scene, browser: Browser, name: str, data: bytes, sentence: str
) -> None:
    before = len(here.behind.triton.asked)
    async with visit(browser, here.url) as tab:
        await tab.upload(data, name)
        await tab.ask("What is this?")
        await tab.sees(sentence)
        await tab.is_free()
        await tab.ask("and without?")
        await tab.sees(WORDS)
    assert len(here.behind.triton.asked) == before + 1


async def test_nothing_typed_is_nothing_asked(here: Scene, browser: Browser) -> None:
    async with visit(browser, here.url) as tab:
        await tab.write("   ")
        await tab.page.keyboard.press("Enter")
        await tab.sees("Type a question or add a picture.")


async def test_a_full_server_says_how_long_to_wait(redis_url: str, tmp_path: Path, browser: Browser) -> None:
    async with scene(redis_url, tmp_path, gateway_page=True, gateway_max_in_flight=1, gateway_max_waiting=0) as here:
        pause = here.behind.triton.pause = Gate()
        held = asyncio.create_task(here.ask("held"))
        await pause.reached.wait()
        async with visit(browser, here.url) as tab:
            await tab.ask("me, too")
            await tab.sees("The server is full. Ask again in 1 s.")
            pause.is_open.set()
            await held
            await tab.is_free()
            await tab.page.click("#chat button[title=Retry]")
            await tab.sees(WORDS)


async def test_a_key_is_asked_for_used_and_never_kept(redis_url: str, tmp_path: Path, browser: Browser) -> None:
    async with scene(
        redis_url, tmp_path, gateway_page=True, gateway_api_keys="first-secret", gateway_key_images_per_minute=2
    ) as here:
        async with visit(browser, here.url) as tab:
            await tab.ask("without a key")
            await tab.sees("This server asks for an API key.")
            await tab.is_free()
            field = tab.page.locator("input[type=password]")
            await field.fill("wrong-secret")
            await tab.ask("with a wrong one")
            await tab.sees("The server does not know this API key.")
            await tab.is_free()
            await field.fill("first-secret")
            await tab.upload(picture("red"))
            await tab.ask("with the right one")
            await tab.sees(WORDS)
            await tab.is_free()
            await tab.ask("about the same picture")
            await expect(tab.page.get_by_text(WORDS)).to_have_count(2, timeout=WAIT)
            await tab.is_free()
            await tab.ask("and once more")
            await tab.sees("Your key has used up its limit. Ask again in")
            kept = await tab.page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
            assert "secret" not in kept
            await tab.page.reload()
            await expect(tab.page.locator("input[type=password]")).to_have_value("", timeout=WAIT)
        assert not any("secret" in url for url in tab.asked)


async def test_a_page_that_dies_is_started_again(redis_url: str, tmp_path: Path, browser: Browser) -> None:
    async with scene(redis_url, tmp_path, gateway_page=True) as here:
        async with visit(browser, here.url):
            pass
        [page] = [one for one in psutil.Process().children() if here.url in one.cmdline()[-1]]
        page.kill()
        await until(lambda: _answers(here))
        async with visit(browser, here.url) as tab:
            await tab.ask("back?")
            await tab.sees(WORDS)
        assert (await here.http.get("/v1/models")).is_success


async def _answers(here: Scene) -> bool:
    return (await here.http.get("/")).is_success
