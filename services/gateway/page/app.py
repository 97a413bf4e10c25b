"""The page's process: gradio on a Unix socket that only the gateway knows. Started by process.py, never by hand.

`python -m services.gateway.page.app FACTS` with the facts as JSON. It goes when its gateway does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import sys
from collections.abc import Iterator

import httpx
import uvicorn

from services.gateway.page.facts import PageFacts
from services.gateway.page.guard import Guard
from ziya.telemetry import configure_logging


def application(facts: PageFacts) -> Guard:
    """gradio's own application behind the guard."""
    import gradio as gr  # noqa: PLC0415 (takes seconds, and reads its environment when it comes)
    from fastapi import FastAPI  # noqa: PLC0415

    from services.gateway.page import layout  # noqa: PLC0415
    from services.gateway.page.style import CSS  # noqa: PLC0415

    timeout = httpx.Timeout(facts.timeout, connect=5.0)
    client = httpx.AsyncClient(base_url=facts.api, timeout=timeout, trust_env=False)
    i18n = layout.words()
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        layout.build(facts, client, i18n),
        "/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=facts.max_image_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        i18n=i18n,
        theme=layout.theme(),
        css=CSS,
    )
    return Guard(app, facts.files, facts.max_kept_bytes)


def main() -> None:
    """Serves until SIGTERM; takes its folder away on leaving."""
    facts = PageFacts.from_json(sys.argv[1])
    configure_logging("gateway-page", "INFO")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the gateway gets it, too, and ends this
    facts.files.mkdir(mode=0o700, exist_ok=True)
    try:
        asyncio.run(_serve(application(facts), str(facts.socket)))
    finally:
        shutil.rmtree(facts.folder, ignore_errors=True)


class _Server(uvicorn.Server):
    """Without uvicorn's own handling of signals, which ends the process before it has cleared up."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(app: Guard, socket: str) -> None:
    config = uvicorn.Config(
        app,
        uds=socket,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, setattr, server, "should_exit", True)
    await server.serve()


if __name__ == "__main__":
    main()
