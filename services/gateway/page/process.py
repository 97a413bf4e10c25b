"""The page's process as the gateway keeps it: begun by the first visitor, again after a crash, ended with the gateway.

It is another process because gradio is large (docs/chat-page.md has the figures), computes on its event loop, and
serves files: none of that is to share the memory, the loop or the secrets of the API. Its environment is made anew,
without keys and passwords.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass, replace
from importlib.util import find_spec

from services.gateway.page.facts import PageFacts
from services.gateway.together import cancel
from ziya.errors import Unavailable
from ziya.leash import on_leash
from ziya.settings import SettingsError

log = logging.getLogger(__name__)
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "TZ", "OMP_NUM_THREADS")
_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_HEARTBEAT_INTERVAL": "5",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONWARNINGS": "ignore",
}
START_SECONDS = 60.0
STOP_SECONDS = 5.0
# After a crash, so that a page that cannot live does not cost a core.
PAUSE_SECONDS = 5.0
STOPPING = "the gateway is stopping"
INSTALL = "pip install 'ziya-visual[page]'"


def installed() -> bool:
    """Whether gradio is here; it is not imported."""
    return find_spec("gradio") is not None


def wanted(setting: bool | None) -> bool:
    """Whether there is to be a page. Raises SettingsError when it is asked for and cannot be."""
    if setting and not installed():
        raise SettingsError(f"ZIYA_GATEWAY_PAGE is true, and gradio is not installed: {INSTALL}")
    return installed() if setting is None else setting


@dataclass
class _Child:
    process: asyncio.subprocess.Process
    facts: PageFacts


class PageProcess:
    """At most one process. The facts come without a folder, which each start makes, and without the API's address."""

    def __init__(self, facts: PageFacts) -> None:
        self._facts = facts
        self._child: _Child | None = None
        self._starting: asyncio.Task[_Child] | None = None
        self._not_before = 0.0
        self._closed = False

    def at(self, host: str, port: int) -> None:
        """Says where the gateway listens, before the first visitor comes."""
        own = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self._facts = replace(self._facts, api=f"http://[{own}]:{port}" if ":" in own else f"http://{own}:{port}")

    async def socket(self, patience: float = math.inf) -> str:
        """Where the page listens. Raises Unavailable: it cannot be, or is not ready within `patience` seconds."""
        if self._starting is None:
            if self._child is not None and self._child.process.returncode is None:
                return str(self._child.facts.socket)
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(_seen)  # nobody may be waiting any more
        starting = self._starting
        done, _ = await asyncio.wait({starting}, timeout=None if patience == math.inf else patience)
        if not done:
            raise Unavailable("it is being started, which takes some seconds")
        if starting.cancelled():
            raise Unavailable(STOPPING)
        return str(starting.result().facts.socket)

    async def stop(self) -> None:
        """Ends it, and takes its folder away."""
        self._closed = True
        if self._starting is not None:
            await cancel([self._starting])
        if self._child is not None:
            await _end(self._child)
            self._child = None

    async def _start(self) -> _Child:
        loop = asyncio.get_running_loop()
        try:
            if self._closed:
                raise Unavailable(STOPPING)
            if loop.time() < self._not_before:
                raise Unavailable("the chat page has just failed; it is started again in some seconds")
            if self._child is not None:
                log.error("the chat page ended with status %s; starting it again", self._child.process.returncode)
                shutil.rmtree(self._child.facts.folder, ignore_errors=True)
            self._not_before = loop.time() + PAUSE_SECONDS
            began = loop.time()
            self._child = await _spawn(self._facts)
            await _listening(self._child)
            log.info("the chat page is ready", extra={"seconds": round(loop.time() - began, 3)})
            return self._child
        finally:
            self._starting = None


def _seen(task: asyncio.Task[_Child]) -> None:
    if not task.cancelled():
        task.exception()


async def _spawn(facts: PageFacts) -> _Child:
    folder = tempfile.mkdtemp(prefix="ziya-page-")
    own = replace(facts, folder=folder)
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment = kept | _QUIET | {"GRADIO_TEMP_DIR": str(own.files), "TMPDIR": folder}
    argv = [*on_leash(signal.SIGTERM), sys.executable, "-m", "services.gateway.page.app", own.to_json()]
    return _Child(await asyncio.create_subprocess_exec(*argv, env=environment, stdin=asyncio.subprocess.DEVNULL), own)


async def _listening(child: _Child) -> None:
    """Raises Unavailable when it ends instead, or takes too long."""
    try:
        async with asyncio.timeout(START_SECONDS):
            while child.process.returncode is None:
                try:
                    _, writer = await asyncio.open_unix_connection(str(child.facts.socket))
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
                writer.close()
                return
    except TimeoutError:
        await _end(child)
    raise Unavailable("the chat page could not be started; the gateway's log has the reason")


async def _end(child: _Child) -> None:
    if child.process.returncode is None:
        child.process.terminate()
        try:
            await asyncio.wait_for(child.process.wait(), STOP_SECONDS)
        except TimeoutError:
            child.process.kill()
            await child.process.wait()
    shutil.rmtree(child.facts.folder, ignore_errors=True)
