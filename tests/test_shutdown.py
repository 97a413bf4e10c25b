"""How a stack ends: asked to, killed, or because a part of it cannot run. Nothing may be left."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from tests.stack import START_SECONDS, STOP_SECONDS, launched, running, ziya
from tests.test_system import CHINESE, body, pixels

pytestmark = [pytest.mark.xdist_group("stack"), pytest.mark.timeout(240)]


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_stop_lets_the_answer_in_flight_finish_and_leaves_nothing(
    tmp_path: Path, tiny_checkpoint: Path, number: signal.Signals
) -> None:
    with running(tmp_path, tiny_checkpoint) as stack:
        everyone = stack.descendants()
        assert len(everyone) >= 6  # redis, vision, qformer, Triton, its stub, gateway
        request = body(pixels(1), CHINESE, max_tokens=200, ignore_eos=True)
        with httpx.stream("POST", f"{stack.url}/v1/chat/completions", json=request, timeout=60) as reply:
            lines = reply.iter_lines()
            assert next(lines).startswith("data: ")
            stack.process.send_signal(number)
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        assert stack.process.wait(STOP_SECONDS) == 0
        assert not [process for process in everyone if process.is_running()]
        assert not (stack.state / "stack.json").exists()
    assert ziya("ask", __file__, CHINESE, env={"XDG_STATE_HOME": str(tmp_path)}).returncode == 1


def test_a_killed_ziya_up_leaves_no_process_and_no_shared_memory(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with running(tmp_path, tiny_checkpoint) as stack:
        everyone = stack.descendants()
        port = stack.addresses["triton_grpc"].rpartition(":")[2]
        stack.process.kill()
        _, alive = psutil.wait_procs(everyone, timeout=STOP_SECONDS)
        assert not alive
        assert not list(Path("/dev/shm").glob(f"ziya_triton_{port}_*"))
    # the folder it had locked is free, and what it wrote there is not believed
    result = ziya("ask", __file__, CHINESE, env={"XDG_STATE_HOME": str(tmp_path)})
    assert result.returncode == 1


def test_wrong_settings_end_the_start_with_the_sentence_of_the_program(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with launched(tmp_path, tiny_checkpoint, env={"ZIYA_VISION_MAX_BATCHES": "4"}) as stack:
        stack.until("vision ended with status 2")
        stack.until("ZIYA_VISION_MAX_BATCHES is not a setting of this program")
        assert stack.process.wait(START_SECONDS) == 1


def test_a_damaged_part_ends_the_start_with_its_name(tmp_path: Path, tiny_checkpoint: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for part in tiny_checkpoint.iterdir():
        (broken / part.name).symlink_to(part)
    (broken / "vision").unlink()
    (broken / "vision").mkdir()
    (broken / "vision" / "config.json").write_text("{}")
    with launched(tmp_path, broken) as stack:
        stack.until("vision ended with status 2")
        assert stack.process.wait(START_SECONDS) == 1


def test_the_demo_shows_answers_beside_the_truth_and_leaves_nothing(tmp_path: Path, tiny_checkpoint: Path) -> None:
    checkpoint = tmp_path / "with-examples"
    (checkpoint / "examples").mkdir(parents=True)
    for part in tiny_checkpoint.iterdir():
        (checkpoint / part.name).symlink_to(part)
    Image.fromarray(pixels(8)).save(checkpoint / "examples" / "noise.png")
    labels = {"name_en": "noise", "name_zh": "噪声", "category_en": "noise", "category_zh": "噪声"}
    entry = {"file": "noise.png", **labels}
    (checkpoint / "examples" / "examples.json").write_text(json.dumps([{**entry, "seen": True}]), "utf-8")
    before = set(psutil.Process().children(recursive=True))
    result = ziya("demo", "--checkpoint", str(checkpoint), env={"XDG_STATE_HOME": str(tmp_path)}, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("noise ") >= 4
    assert "0 of 4 answers are exactly the true label" in result.stdout
    assert set(psutil.Process().children(recursive=True)) == before
