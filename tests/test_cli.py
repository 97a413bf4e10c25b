"""The `ziya` command without a stack: help, plain errors, exit codes, ports and the state folder."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from PIL import Image

from cli.chat import Report, _piece
from cli.demo import load_cases, same
from cli.ports import Ports
from cli.programs import Layout, check_checkpoint
from cli.state import Addresses, claim, running
from cli.text import CommandError
from tests.stack import ziya

ADDRESSES = Addresses("127.0.0.1:1", "127.0.0.1:2", "v", "q", "th", "tg", "unix:///r")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (8, 8), "red").save(path)
    return path


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment whose default state folder is empty."""
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


def test_help_lists_the_commands_and_needs_no_heavy_import() -> None:
    result = ziya("--help")
    assert result.returncode == 0
    assert all(name in result.stdout for name in ("up", "ask", "convert", "demo"))


@pytest.mark.parametrize("command", ["up", "ask", "convert", "demo"])
def test_each_command_explains_itself(command: str) -> None:
    result = ziya(command, "--help")
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout


def test_an_unknown_command_is_a_usage_error() -> None:
    result = ziya("dance")
    assert result.returncode == 2
    assert "dance" in result.stderr


def test_ask_without_a_stack_says_how_to_start_one(picture: Path, home: dict[str, str]) -> None:
    result = ziya("ask", str(picture), "what is it?", env=home)
    assert (result.returncode, result.stdout) == (1, "")
    assert "no stack is running on this machine: start one with `ziya up`" in result.stderr


def test_ask_where_nothing_listens_names_the_address(picture: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        result = ziya("ask", str(picture), "what is it?", "--url", url)
    assert result.returncode == 1
    assert f"nothing answers at {url}" in result.stderr


def test_ask_names_a_file_that_is_not_there() -> None:
    result = ziya("ask", "no-such-cat.png", "what is it?")
    assert result.returncode == 2
    assert "cannot read no-such-cat.png: no such file" in result.stderr


def test_ask_names_a_file_that_is_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a picture")
    result = ziya("ask", str(tmp_path / "notes.txt"), "what is it?")
    assert result.returncode == 1
    assert "notes.txt: " in result.stderr
    assert "image" in result.stderr


def test_ask_without_a_question_or_a_picture(picture: Path) -> None:
    for words, complaint in [((str(picture),), "no question"), (("what is it?",), "no picture"), ((), "Missing")]:
        result = ziya("ask", *words)
        assert result.returncode == 2
        assert complaint in result.stderr


def test_a_taken_port_is_named_with_its_option(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for option in ("--http-port", "--grpc-port"):
            result = ziya("up", "--checkpoint", str(tiny_checkpoint), "--state-dir", str(tmp_path), option, port)
            assert result.returncode == 1
            assert f"port {port} on 127.0.0.1 is taken" in result.stderr
            assert option in result.stderr


@pytest.mark.parametrize(("break_it", "complaint"), [("config.json", "no config.json"), ("llama", "no llama/ part")])
def test_a_broken_checkpoint_is_named(tiny_checkpoint: Path, tmp_path: Path, break_it: str, complaint: str) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for entry in tiny_checkpoint.iterdir():
        if entry.name != break_it:
            (broken / entry.name).symlink_to(entry)
    result = ziya("up", "--checkpoint", str(broken), "--state-dir", str(tmp_path / "state"))
    assert result.returncode == 1
    assert complaint in result.stderr
    with pytest.raises(CommandError, match=complaint):
        check_checkpoint(broken)


def test_a_reserved_port_is_ours_to_listen_on_and_nobody_elses_to_reserve() -> None:
    ports = Ports()
    port = ports.reserve(0, "--http-port")
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
        with pytest.raises(CommandError, match=f"port {port} .* is taken"):
            Ports().reserve(port, "--http-port")
        other = Ports()
        assert other.prefer(port) != port
        other.close()
    ports.close()


def test_free_ports_are_all_different_and_internal_ones_give_way() -> None:
    first, second, said = Ports(), Ports(), list[str]()
    layout = Layout.reserve(first, 0, 0, said.append)
    assert len(set(vars(layout).values())) == len(vars(layout))
    other = Layout.reserve(second, 0, 0, said.append)
    assert not set(vars(layout).values()) & set(vars(other).values())
    assert said == []
    first.close()
    second.close()


def test_a_state_folder_has_one_owner_and_is_free_again_when_it_is_gone(tmp_path: Path) -> None:
    folder = claim(tmp_path)
    with pytest.raises(CommandError, match="another `ziya up` is running"):
        claim(tmp_path)
    assert running(tmp_path) == []
    folder.publish(ADDRESSES)
    assert running(tmp_path) == [(tmp_path, ADDRESSES)]
    folder.close()
    assert running(tmp_path) == []
    claim(tmp_path).close()


def test_addresses_left_by_a_killed_stack_are_not_believed(tmp_path: Path) -> None:
    folder = claim(tmp_path)
    folder.publish(ADDRESSES)
    left = (tmp_path / "stack.json").read_text("utf-8")
    folder.close()
    (tmp_path / "stack.json").write_text(left, "utf-8")
    assert running(tmp_path) == []


def test_a_socket_goes_elsewhere_when_the_folder_has_a_long_name(tmp_path: Path) -> None:
    folder = claim(tmp_path / ("x" * 120))
    socket_path = folder.socket("redis.sock")
    assert len(str(socket_path)) < 100
    assert socket_path.parent.is_dir()
    folder.close()
    assert not socket_path.parent.exists()


def test_the_stream_is_read_piece_by_piece() -> None:
    report = Report()
    events = [
        {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
        {"choices": [{"delta": {"content": "猫"}, "finish_reason": None}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        {
            "choices": [],
            "usage": {"completion_tokens": 3, "prompt_tokens_details": {"image_tokens": 4}},
            "ziya": {"stage_seconds": {"vision": 0.5}},
        },
    ]
    assert "".join(_piece(f"data: {json.dumps(event)}", report) for event in events) == "猫"
    assert _piece("data: [DONE]", report) == ""
    assert _piece(": heartbeat", report) == ""
    assert report.finish_reason == "stop"
    assert report.usage == {"completion_tokens": 3, "image_tokens": 4}
    assert report.stage_seconds == {"vision": 0.5}
    with pytest.raises(CommandError, match="broke off: no time left"):
        _piece('data: {"error": {"message": "no time left"}}', report)


def test_the_demo_asks_about_seen_things_and_judges_fairly(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    labels = {"name_en": "cat", "name_zh": "猫", "category_en": "animal", "category_zh": "动物"}
    cat = {"file": "cat.png", **labels, "seen": True}
    entries = [
        {**cat, "seen": False},
        cat,
        {**cat, "name_en": "cow"},
        {**cat, "category_en": "food", "name_en": "rice"},
    ]
    (tmp_path / "examples" / "examples.json").write_text(json.dumps(entries), "utf-8")
    assert [case.truth for case in load_cases(tmp_path, 1)] == ["猫", "cat", "动物", "animal"]
    assert [case.truth for case in load_cases(tmp_path, 3)][1::4] == ["cat", "rice", "cow"]
    assert same("Cat. ", "cat")
    assert same("猫。", "猫")
    assert not same("cats", "cat")
    with pytest.raises(CommandError, match="no examples"):
        list(load_cases(tmp_path / "examples", 4))


def test_convert_there_and_back(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "hf", tmp_path / "back"
    there = ziya("convert", str(tiny_checkpoint), str(out), "--to-hf")
    assert there.returncode == 0, there.stderr
    assert there.stdout.endswith(f"wrote {out}\n")
    result = ziya("convert", str(out), str(back))
    assert result.returncode == 0, result.stderr
    check_checkpoint(back)


def test_convert_refuses_in_a_sentence(tiny_checkpoint: Path, tmp_path: Path) -> None:
    nothing = ziya("convert", str(tmp_path / "nothing"), str(tmp_path / "out"))
    assert nothing.returncode == 1
    assert str(tmp_path / "nothing") in nothing.stderr
    assert "Traceback" not in nothing.stderr
    both = ziya("convert", str(tiny_checkpoint), str(tmp_path / "out"), "--to-hf", "--llama", str(tmp_path))
    assert both.returncode == 2
