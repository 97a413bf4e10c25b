"""The parts of the chat page that need no browser: words, conversation, report, errors, policy."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest

from services.gateway.page import words
from services.gateway.page.answer import Answer, Refused
from services.gateway.page.guard import policy, size_of, without_outside
from services.gateway.page.history import Images, LostImage, NotImage, messages_of, question_of
from services.gateway.page.sentences import refusal, report
from services.gateway.page.words import LABELS, SAID, fields_of, language_of, say
from tests.gateways import picture


@pytest.mark.parametrize("name", [*LABELS, *SAID])
def test_both_languages_say_the_same_things(name: str) -> None:
    english, chinese = (LABELS | SAID)[name]
    assert fields_of(english) == fields_of(chinese)
    assert english.isascii() or set(english) - set(map(chr, range(128))) <= set("·…⚠\ufe0f")
    assert name == "qformer" or any("\u4e00" <= letter <= "\u9fff" for letter in chinese)


def test_labels_and_sentences_have_names_of_their_own() -> None:
    assert not set(LABELS) & set(SAID)
    assert words.translations("zh")["parameters"] == "参数"


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,en;q=0.9,zh;q=0.8", "en"),
        ("fr,zh;q=0.5,en;q=0.7", "en"),
        ("de", "en"),
        ("", "en"),
        ("en;q=oops,zh-TW", "zh"),
    ],
)
def test_the_language_is_what_the_browser_likes_best(header: str, language: str) -> None:
    assert language_of(header) == language


# The conversation


def said(role: str, text: str, *files: Path, title: str = "") -> dict[str, Any]:
    parts = [{"type": "file", "file": {"path": str(file)}} for file in files]
    message = {"role": role, "content": [*parts, {"type": "text", "text": text}]}
    return message | {"metadata": {"title": title} if title else None}


def shown(image: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(image).decode()}"}}


def test_answered_turns_are_told_and_failed_ones_are_not(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(picture("red"))
    history = [
        said("user", "lost", tmp_path / "gone.png"),
        said("assistant", "no backend", title="⚠️"),
        said("user", "stopped before a word"),
        said("user", "what?", file),
        said("assistant", "a square"),
        said("user", "broken"),
        said("assistant", "half an"),
        said("assistant", "it broke off", title="⚠️"),
    ]
    assert messages_of(history, Images(tmp_path, 1 << 20)) == [
        {"role": "user", "content": [shown(picture("red")), {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "a square"},
        {"role": "user", "content": [{"type": "text", "text": "broken"}]},
        {"role": "assistant", "content": "half an"},
    ]


def test_only_pictures_of_visitors_are_read(tmp_path: Path) -> None:
    folder, outside = tmp_path / "files", tmp_path / "secret.png"
    folder.mkdir()
    outside.write_bytes(picture("red"))
    (folder / "link.png").symlink_to(outside)
    (folder / "text.png").write_text("words", "utf-8")
    (folder / "large.png").write_bytes(picture("red", 64) + bytes(4096))
    images = Images(folder, 2048)
    for path in (outside, folder / "link.png", folder / ".." / "secret.png", folder / "gone.png", Path("/etc/passwd")):
        with pytest.raises(LostImage):
            images.part(str(path))
    for name in ("text.png", "large.png"):
        with pytest.raises(NotImage, match=name):
            question_of("what?", [str(folder / name)], images)


# What is told of an answer


def test_the_report_has_stages_and_tokens_in_both_languages() -> None:
    usage = {
        "prompt_tokens": 45,
        "completion_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 3, "image_tokens": 32},
    }
    stages = {"admission": 0.0004, "vision": 0.012, "decode": 1.25, "total": 1.3, "unknown": 1.0}
    answer = Answer("text", "length", usage, stages, first=0.026, total=1.426)
    assert report("en", answer) == (
        "First text after 26 ms, whole answer 1.4 s · let in 0 ms · vision 12 ms · decode 1.2 s · 45 tokens read "
        "(32 of pictures, 3 remembered), 8 written, 5 a second · Cut at the longest answer."
    )
    assert report("zh", answer) == (
        "首字 26 ms，全部 1.4 s · 接入 0 ms · 视觉编码 12 ms · 解码 1.2 s · 读入 45 个 token（图片 32，已缓存 3），"
        "生成 8 个，每秒 5 个 · 已达到最大长度，回答被截断。"
    )


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (Refused(429, "overloaded", "full", wait=7), "The server is full. Ask again in 7 s."),
        (Refused(429, "rate_limit_exceeded", "used up", wait=30), "Your key has used up its limit. Ask again in 30 s."),
        (Refused(400, "invalid_image", "no GIF."), "The picture was refused: no GIF"),
        (Refused(400, "invalid_value", "temperature"), "The request was refused: temperature"),
        (Refused(403, "forbidden", "not yours"), "This key may not do that: not yours"),
        (Refused(413, "request_too_large", "x"), "The pictures are too large together."),
        (
            Refused(500, "internal_error", "x", request="r1"),
            "The server has failed. Its log has the reason under request r1.",
        ),
        (
            Refused(503, "stage_unavailable", "vision cannot be reached: UNKNOWN: ipv4:10.0.0.1:9001: refused"),
            "A part of the server is away (vision cannot be reached). It may be starting again; "
            "press retry in a moment.",
        ),
        (Refused(504, "deadline_exceeded", "x"), "The answer took too long and was given up."),
        (Refused(0, "deadline_exceeded", "x"), "The answer took too long and was given up."),
        (Refused(0, "internal_error", "fell over"), "The answer broke off: fell over"),
        (Refused(502, "", "HTTP status 502"), "The request was refused: HTTP status 502"),
    ],
)
def test_errors_of_the_gateway_are_sentences(error: Refused, sentence: str) -> None:
    assert refusal("en", error, "key") == sentence
    assert refusal("zh", error, "key") != sentence


def test_an_unknown_key_and_none_are_told_apart() -> None:
    error = Refused(401, "invalid_api_key", "x")
    assert refusal("en", error, "") == say("en", "no_key")
    assert refusal("en", error, "k") == say("en", "wrong_key")


# What the browser may load


def test_the_policy_names_the_scripts_of_the_page_and_no_other_server() -> None:
    html = b'<html><script>go()</script><script src="./a.js"></script><script type="module">x</script></html>'
    told = policy(html)
    for text in (b"go()", b"x"):
        assert base64.b64encode(hashlib.sha256(text).digest()).decode() in told
    assert told.count("sha256-") == 2
    assert "http" not in told
    assert "script-src 'self' 'sha256" in told


def test_elements_of_other_servers_are_taken_out() -> None:
    html = (
        b'<meta property="og:image" content="https://x.example/a.png" /><link rel="x" href="https://y.example/b.css">'
    )
    kept = b'<link href="./c.css"><script>const home = "https://z.example"</script>'
    assert without_outside(html + kept) == kept


def test_the_size_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(bytes(100))
    (tmp_path / "b").write_bytes(bytes(23))
    assert size_of(tmp_path) == 123
