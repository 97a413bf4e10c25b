"""`ziya key`: a key is shown once, and its line opens a gateway that knows only the hash."""

from __future__ import annotations

import json
from pathlib import Path

from services.gateway.keys.key_entry import digest_of
from tests.gateways import scene
from tests.stack import ziya


def test_a_key_and_its_line_are_printed_once(tmp_path: Path) -> None:
    words = ("--name", "alice", "--role", "internal", "--images-per-minute", "5", "--adapter", "a", "--adapter", "b")
    done = ziya("key", "new", *words)
    assert done.returncode == 0, done.stderr
    secret, line = done.stdout.splitlines()
    assert json.loads(line) == {
        "name": "alice",
        "sha256": digest_of(secret),
        "role": "internal",
        "images_per_minute": 5,
        "adapters": ["a", "b"],
    }
    assert secret not in done.stderr


async def test_its_line_opens_a_gateway(redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old", "utf-8")  # without a line break at its end
    done = ziya("key", "new", "--name", "bob", "--file", str(file))
    assert done.returncode == 0, done.stderr
    secret = done.stdout.strip()
    assert secret not in file.read_text("utf-8")
    async with scene(redis_url, tmp_path, gateway_api_keys_file=file) as here:
        for key, status in ((secret, 200), ("old", 200), (secret + "x", 401), (digest_of(secret), 401)):
            answer = await here.http.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == status


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    assert ziya("key", "new", "--name", "bob", "--file", str(file)).returncode == 0
    before = file.read_text("utf-8")
    again = ziya("key", "new", "--name", "bob", "--file", str(file))
    assert (again.returncode, again.stdout) == (2, "")
    assert "has a key bob already" in again.stderr
    assert file.read_text("utf-8") == before


def test_what_cannot_be_is_named() -> None:
    for words, said in (
        (("--name", "two words"), "--name: letters, digits and . _ - are allowed"),
        (("--name", "x", "--concurrent", "0"), "--concurrent: input should be greater than or equal to 1"),
    ):
        done = ziya("key", "new", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr


def test_a_file_is_shown_as_a_gateway_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    assert (
        ziya("key", "new", "--name", "a", "--priority", "low", "--concurrent", "3", "--file", str(file)).returncode == 0
    )
    with file.open("a") as end:
        end.write("plain-key\n")
    shown = ziya("key", "list", str(file))
    assert shown.stdout.splitlines() == ["a: user, low, 3 at once", "key-1: user, normal"]
    file.write_text('{"name": "a"}\n', "utf-8")
    wrong = ziya("key", "list", str(file))
    assert wrong.returncode == 2
    assert "line 1: sha256: field required" in wrong.stderr
    assert ziya("key", "list", str(tmp_path / "none")).returncode == 2
