"""A headless Chromium before a gateway, without any network but loopback.

`python -m tests.chromium` seeks one as the Makefile does once, when it sets up: where none is on PATH and apt works, it
installs Debian's, and its Chinese fonts. Where that cannot be the tests that need one are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

PACKAGES = ("chromium", "fonts-noto-cjk")
PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
needs_chromium = pytest.mark.skipif(not PROGRAM, reason="no Chromium here: `make setup` seeks one")
# Names of hosts lead nowhere, so that what asks for one fails and is seen.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
WAIT = 30_000  # milliseconds, for what must come at last
PASTE = """([element, kind, name, type, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, {type}));
  const options = {bubbles: true, cancelable: true};
  const event = kind === "paste" ? new ClipboardEvent("paste", {...options, clipboardData: data})
                                 : new DragEvent("drop", {...options, dataTransfer: data});
  element.dispatchEvent(event);
}"""


@dataclass
class Visit:
    """A tab with the page in it. `asked`: every URL that it asked for. `said`: what it wrote to its console.

    `failed`: why, for each URL that gave nothing; "csp" where the browser did not even ask.
    """

    page: Page
    asked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    async def write(self, text: str) -> None:
        await self.page.fill("#ask textarea", text)

    async def submit(self) -> None:
        await self.page.click("#ask .submit-button")

    async def ask(self, text: str) -> None:
        await self.write(text)
        await self.submit()

    async def upload(self, image: bytes, name: str = "picture.png", kind: str = "image/png") -> None:
        """Picks a file, and waits until it is there."""
        file: Any = {"name": name, "mimeType": kind, "buffer": image}
        await self.page.set_input_files("#ask input[type=file]", file)
        await self.uploaded()

    async def bring(self, how: str, image: bytes) -> None:
        """Pastes or drops a picture, and waits until it is there."""
        element = await self.page.query_selector("#ask textarea")
        await self.page.evaluate(PASTE, [element, how, "picture.png", "image/png", list(image)])
        await self.uploaded()

    async def uploaded(self) -> None:
        await expect(self.page.locator("#ask .thumbnail-item")).not_to_have_count(0, timeout=WAIT)

    async def sees(self, text: str, where: str = "#chat") -> None:
        await expect(self.page.locator(where)).to_contain_text(text, timeout=WAIT)

    async def reads(self, where: str = "#chat") -> str:
        return await self.page.inner_text(where)

    async def is_free(self) -> None:
        """Waits until the next question may be asked."""
        await expect(self.page.locator("#ask .submit-button")).to_be_visible(timeout=WAIT)
        await expect(self.page.locator("#ask textarea")).to_be_enabled(timeout=WAIT)


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as play:
        opened = await play.chromium.launch(executable_path=PROGRAM, args=ARGUMENTS)
        yield opened
        await opened.close()


@asynccontextmanager
async def visit(browser: Browser, url: str, *, language: str = "en-US", **options: Any) -> AsyncIterator[Visit]:
    """A tab of a browser of nobody's, when the page is there. `options` are those of a context of Playwright's."""
    context = await browser.new_context(locale=language, **options)
    page = await context.new_page()
    made = Visit(page)
    page.on("request", lambda request: made.asked.append(request.url))
    page.on("requestfailed", lambda request: made.failed.update({request.url: request.failure or ""}))
    page.on("console", lambda message: made.said.append(message.text))
    page.on("pageerror", lambda error: made.said.append(str(error)))
    await page.goto(url, timeout=WAIT)
    await page.wait_for_selector("#ask textarea", timeout=WAIT)
    try:
        yield made
    finally:
        await context.close()


def install() -> None:
    """Raises OSError or CalledProcessError where there is no apt, or no right to use it."""
    if PROGRAM:
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "-qq", "update"], check=True, capture_output=True)
    command = ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *PACKAGES]
    subprocess.run(command, check=True, capture_output=True, env=environment)


if __name__ == "__main__":
    try:
        install()
    except (OSError, subprocess.CalledProcessError) as problem:
        print(f"no Chromium: {problem}; tests of the chat page will be skipped", file=sys.stderr)  # noqa: T201
