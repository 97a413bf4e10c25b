"""API keys: what a line of the file may say, what roles may do, and that no secret shows."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from services.gateway.keys import api_keys
from services.gateway.keys.api_keys import KeyFile, KeyFileError
from services.gateway.keys.key_entry import (
    Key,
    KeyEntry,
    Limits,
    Priority,
    Role,
    digest_of,
    new_secret,
    parse_keys,
    salt_of,
)
from tests.gateways import WORDS, Scene, content_of, scene
from tests.helm import CHART


def line(name: str, secret: str, **more: object) -> str:
    return json.dumps({"name": name, "sha256": digest_of(secret), **more})


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


# The file


def test_a_line_says_what_a_key_may_do() -> None:
    more = {"role": "admin", "priority": "high", "weight": 3, "images_per_minute": 5, "tokens_per_minute": 6}
    text = line("alice", "secret", **more, concurrent=7, adapters=["terse"])
    limits = Limits(images=5, tokens=6, concurrent=7)
    digest = digest_of("secret")
    expected = Key("alice", Role.ADMIN, Priority.HIGH, 3.0, limits, frozenset({"terse"}), salt_of(digest))
    assert parse_keys(text, Limits()) == {digest: expected}


def test_absent_limits_are_the_defaults_and_null_is_none() -> None:
    defaults = Limits(images=1, tokens=2, concurrent=3)
    text = "\n".join([line("plain", "a"), line("free", "b", images_per_minute=None, concurrent=9), "old, older"])
    found = {key.name: key.limits for key in parse_keys(text, defaults).values()}
    assert found == {"plain": defaults, "free": Limits(None, 2, 9), "key-1": defaults, "key-2": defaults}


def test_plain_lines_comments_and_entries_stand_side_by_side() -> None:
    text = f"# who may ask\none, two\r\n{line('hashed', 'three')}\n\n#hash-that-is-a-key\n"
    keys = parse_keys(text, Limits())
    assert {key.name: digest for digest, key in keys.items()} == {
        "key-1": digest_of("one"),
        "key-2": digest_of("two"),
        "hashed": digest_of("three"),
        "key-3": digest_of("#hash-that-is-a-key"),
    }


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ('{"name": "x"}', "line 2: sha256: field required"),
        ('{"name": "x", ', "line 2: not valid JSON"),
        ('{"name": "x", "sha256": "SECRET"}', "line 2: sha256: "),
        (line("x", "a", role="root"), "line 2: role: "),
        (line("x", "a", images_per_minute=0), "line 2: images_per_minute: "),
        (line("x", "a", images_a_minute=1), "line 2: images_a_minute: "),
        (line("no spaces", "a"), "line 2: name: "),
        (line("first", "other"), "line 2: the key first is there twice"),
        (line("second", "SECRET"), "line 2: the key second is there twice"),
    ],
)
def test_a_wrong_line_is_named_and_never_quoted(tmp_path: Path, bad: str, words: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{line('first', 'SECRET')}\n{bad}\n", "utf-8")
    with pytest.raises(KeyFileError) as caught:
        KeyFile(file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert digest_of("SECRET") not in str(caught.value)


def test_what_is_written_for_a_key_is_read_again() -> None:
    entry = KeyEntry(name="bob", sha256=digest_of("x"), role=Role.INTERNAL, concurrent=2, adapters=("a", "b"))
    assert KeyEntry.parse(entry.line()) == entry
    assert set(json.loads(entry.line())) == {"name", "sha256", "role", "concurrent", "adapters"}


def test_secrets_are_long_and_never_the_same() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert {len(secret) for secret in made} == {3 + 43}


def test_salts_tell_nothing_of_what_is_kept() -> None:
    digest = digest_of("x")
    assert salt_of(digest) not in digest
    assert salt_of(digest) != salt_of(digest_of("y"))


# What roles may do

KEYS = "\n".join(
    [
        line("client", "c-key"),
        line("batch", "b-key", role="internal", priority="low"),
        line("boss", "a-key", role="admin"),
        line("tenant", "t-key", adapters=["theirs"]),
        "old-key",
    ]
)


async def status(here: Scene, path: str, secret: str) -> int:
    return (await here.http.get(path, headers=bearer(secret))).status_code


async def test_metrics_are_for_keys_of_the_operators_own(redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(KEYS, "utf-8")
    async with scene(redis_url, tmp_path, gateway_api_keys_file=file) as here:
        wanted = {"c-key": 403, "b-key": 200, "a-key": 200, "t-key": 403, "old-key": 403, "nobody": 401}
        assert {secret: await status(here, "/metrics", secret) for secret in wanted} == wanted
        refused = (await here.http.get("/metrics", headers=bearer("c-key"))).json()["error"]
        assert (refused["type"], refused["code"]) == ("permission_error", "forbidden")
        assert (await here.http.get("/metrics")).status_code == 401
        assert (await here.http.get("/healthz")).status_code == 200
        page = (await here.http.get("/metrics", headers=bearer("a-key"))).text
        assert "a-key" not in page
        assert digest_of("a-key") not in page


async def test_a_key_may_be_kept_to_its_adapters(redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(KEYS, "utf-8")
    async with scene(redis_url, tmp_path, gateway_api_keys_file=file) as here:
        tenant = here.client.with_options(api_key="t-key")
        messages = [{"role": "user", "content": "hello"}]
        for model in ("ziya-visual", "ziya-visual:theirs"):
            assert await content_of(tenant.chat.completions.create(model=model, messages=messages)) == WORDS
        with pytest.raises(openai.PermissionDeniedError, match="tenant may not use the adapter 'others'"):
            await tenant.chat.completions.create(model="ziya-visual:others", messages=messages)
        assert [asked.sampling.get("adapter") for asked in here.behind.triton.asked] == [None, "theirs"]
        assert await status(here, "/v1/models/ziya-visual:others", "t-key") == 403
        assert await status(here, "/v1/models/ziya-visual:others", "c-key") == 200


async def test_only_an_admin_asks_above_the_keys_own_priority(redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(KEYS, "utf-8")
    async with scene(redis_url, tmp_path, gateway_api_keys_file=file) as here:
        body = {"model": "ziya-visual", "messages": [{"role": "user", "content": "hello"}]}

        async def ask(secret: str, priority: str) -> int:
            headers = {**bearer(secret), "X-Priority": priority}
            return (await here.http.post("/v1/chat/completions", json=body, headers=headers)).status_code

        assert [await ask("c-key", word) for word in ("low", "normal", "HIGH")] == [200, 200, 403]
        assert [await ask("b-key", word) for word in ("low", "normal")] == [200, 403]
        assert await ask("a-key", "high") == 200
        assert await ask("a-key", "urgent") == 400


async def test_a_wrong_line_leaves_the_keys_as_they_were(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "LOOK_SECONDS", 0.0)
    file = tmp_path / "keys"
    file.write_text(line("one", "1"), "utf-8")
    async with scene(redis_url, tmp_path, gateway_api_keys_file=file) as here:
        assert [await status(here, "/v1/models", secret) for secret in ("1", "2")] == [200, 401]
        file.write_text(line("two", "2") + '\n{"name": "broken"', "utf-8")
        assert [await status(here, "/v1/models", secret) for secret in ("1", "2")] == [200, 401]
        file.write_text(line("two", "2"), "utf-8")
        assert [await status(here, "/v1/models", secret) for secret in ("1", "2")] == [401, 200]


# What `helm test` asks with


async def test_the_charts_test_finds_a_key_that_is_not_hashed(redis_url: str, tmp_path: Path) -> None:
    hashed = line("client", "c-key")
    file = tmp_path / "keys"
    file.write_text(f"# comment\n{hashed}\nplain-key, other\n", "utf-8")
    async with scene(redis_url, tmp_path, gateway_api_keys_file=file) as here:

        async def run(text: str) -> subprocess.CompletedProcess[str]:
            argv = [sys.executable, str(CHART / "files" / "ask.py"), str(CHART / "files" / "example.webp")]
            environment = {"PATH": os.environ["PATH"], "GATEWAY": here.url, "API_KEYS": text}
            return await asyncio.to_thread(
                subprocess.run, argv, env=environment, capture_output=True, text=True, timeout=60, check=False
            )

        done = await run(file.read_text("utf-8"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(WORDS) == 2
        without = await run(f"# comment\n{hashed}\n")
        assert without.returncode == 1
        assert "gateway.apiKeys.testKey" in without.stderr
