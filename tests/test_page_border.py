"""The border of the chat page: what of it strangers reach, what it is told, and what it leaves behind."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from services.gateway.page.proxy import takes
from tests.gateways import Scene, picture, scene
from tests.pages import shared

__all__ = ["shared"]
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("page")]
REFUSED = (
    ("GET", "/gradio_api/proxy=https://evil.example/"),
    ("GET", "/gradio_api/info"),
    ("GET", "/gradio_api/openapi.json"),
    ("GET", "/gradio_api/call/chat/1"),
    ("POST", "/gradio_api/call/chat"),
    ("POST", "/gradio_api/api/predict"),
    ("POST", "/gradio_api/component_server"),
    ("GET", "/gradio_api/deep_link"),
    ("GET", "/gradio_api/file/etc/passwd"),
    ("GET", "/monitoring"),
    ("GET", "/login_check"),
    ("GET", "/docs"),
    ("DELETE", "/"),
    ("PUT", "/gradio_api/upload"),
)


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(shared: Scene) -> AsyncIterator[Scene]:
    await opened(shared)
    yield shared


async def opened(here: Scene) -> None:
    """Opens the page; while it starts, a browser is told so and comes again."""
    while (reply := await here.http.get("/")).status_code == 503:
        assert "being started" in reply.text
        assert reply.headers["refresh"] == "2"
    assert reply.is_success


def pages_of(here: Scene) -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if here.url in one.cmdline()[-1]]


async def test_no_path_climbs() -> None:
    assert takes("GET", "/assets/index.js")
    assert not takes("GET", "/assets/../config")
    assert not takes("GET", "/gradio_api/file=/tmp/../etc/passwd")


@pytest.mark.parametrize(("method", "path"), REFUSED)
async def test_paths_that_the_page_does_not_need_are_not_there(open_page: Scene, method: str, path: str) -> None:
    assert not takes(method, path)
    reply = await open_page.http.request(method, path)
    assert reply.status_code in (404, 405)
    assert reply.json()["error"]["type"] in ("not_found_error", "invalid_request_error")


async def test_files_are_served_of_visitors_only(open_page: Scene, tmp_path: Path) -> None:
    [page] = pages_of(open_page)
    folder = json.loads(page.cmdline()[-1])["folder"]
    secret = tmp_path / "secret.txt"
    secret.write_text("secret", "utf-8")
    files = {"files": ("red.png", picture("red"), "image/png")}
    [path] = (await open_page.http.post("/gradio_api/upload", files=files)).json()
    assert path.startswith(f"{folder}/files/")
    reply = await open_page.http.get(f"/gradio_api/file={path}")
    assert reply.content == picture("red")
    assert reply.headers["content-security-policy"] == "default-src 'none'; sandbox"
    others = (
        str(secret),
        "/etc/passwd",
        f"{folder}/page.sock",
        f"{folder}/files/../../../etc/passwd",
        "https://evil.example/",
    )
    for other in others:
        answer = await open_page.http.get(f"/gradio_api/file={other}")
        assert answer.status_code in (403, 404), other
        assert b"root:" not in answer.content
    assert (await open_page.http.get("/gradio_api/file=%2Fetc%2Fpasswd")).status_code in (403, 404)


async def test_a_page_that_a_visitor_uploads_is_none(open_page: Scene) -> None:
    files = {"files": ("evil.html", b"<script>alert(1)</script>", "text/html")}
    [path] = (await open_page.http.post("/gradio_api/upload", files=files)).json()
    reply = await open_page.http.get(f"/gradio_api/file={path}")
    assert "sandbox" in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"


async def test_an_upload_has_the_bounds_of_an_image_and_of_a_body(redis_url: str, tmp_path: Path) -> None:
    bounds = {"gateway_max_image_bytes": 4096, "gateway_max_body_bytes": 16384}
    async with scene(redis_url, tmp_path, gateway_page=True, **bounds) as here:
        small = {"files": ("a.png", bytes(2048), "image/png")}
        assert (await here.http.post("/gradio_api/upload", files=small)).is_success
        large = {"files": ("a.png", bytes(8192), "image/png")}
        assert (await here.http.post("/gradio_api/upload", files=large)).status_code == 413
        huge = {"files": ("a.png", bytes(1 << 20), "image/png")}
        reply = await here.http.post("/gradio_api/upload", files=huge)
        assert reply.status_code == 413
        assert reply.json()["error"]["code"] == "request_too_large"


async def test_headers_of_the_page(open_page: Scene) -> None:
    reply = await open_page.http.get("/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    [scripts] = [rule for rule in policy.split("; ") if rule.startswith("script-src")]
    assert "unsafe" not in scripts
    assert "access-control-allow-origin" not in reply.headers
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["x-request-id"]


async def test_the_page_knows_no_secret(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, gateway_page=True, gateway_api_keys="a-secret-key") as here:
        os.environ["ZIYA_GATEWAY_API_KEYS"] = "a-secret-key"
        try:
            await opened(here)
        finally:
            del os.environ["ZIYA_GATEWAY_API_KEYS"]
        [page] = pages_of(here)
        told = json.dumps(page.environ()) + json.dumps(page.cmdline())
        assert "a-secret-key" not in told
        assert not [name for name in page.environ() if name.startswith("ZIYA_")]


async def test_it_listens_on_nothing_but_its_socket_and_leaves_nothing(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, gateway_page=True) as here:
        assert not pages_of(here)
        await opened(here)
        [page] = pages_of(here)
        assert not [one for one in page.connections("inet") if one.status == psutil.CONN_LISTEN]
        folder = Path(json.loads(page.cmdline()[-1])["folder"])
        assert folder.stat().st_mode & 0o077 == 0
    assert not page.is_running()
    assert not folder.exists()


async def test_switched_off_there_is_a_list_of_paths(redis_url: str, tmp_path: Path) -> None:
    async with scene(redis_url, tmp_path, gateway_page=False) as here:
        reply = await here.http.get("/")
        assert "POST /v1/chat/completions" in reply.text
        assert "gradio" not in reply.text
        assert (await here.http.get("/gradio_api/heartbeat/x")).status_code == 404
        assert not pages_of(here)
