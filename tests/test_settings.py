"""A wrong name or value in the environment stops a program at its start and is named; everything else is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import ValidationError

from ziya.settings import ProcessSettings, metrics_port

# Its own class, and not the one below: importing pytest again and again takes most of the time.
PROGRAM = """
from typing import ClassVar
from ziya.settings import ProcessSettings
class Settings(ProcessSettings):
    program: ClassVar[str] = "vision"
    vision_port: int = 9001
settings = Settings.load()
print(settings.vision_port, settings.redis_url, settings.log_level, settings.checkpoint)
"""


class Settings(ProcessSettings):
    program: ClassVar[str] = "vision"
    vision_port: int = 9001


def start(**environment: str) -> subprocess.CompletedProcess[str]:
    """A real process with exactly these ZIYA_ variables."""
    others = {name: value for name, value in os.environ.items() if not name.upper().startswith("ZIYA_")}
    command = [sys.executable, "-c", PROGRAM]
    env = others | {"ZIYA_CHECKPOINT": "/models/ziya"} | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_defaults_and_what_is_given() -> None:
    done = start(ZIYA_VISION_PORT="0", ZIYA_REDIS_URL="unix:///run/redis.sock")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "0 unix:///run/redis.sock INFO /models/ziya\n"


def test_names_may_be_in_lower_case() -> None:
    assert start(ziya_vision_port="5").stdout.startswith("5 ")


def test_another_programs_variables_are_left_alone() -> None:
    assert start(ZIYA_QFORMER_PORT="9002", ZIYA_GATEWAY_ANYTHING="x").returncode == 0


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("ZIYA_PROT", "1", "ZIYA_PROT is not a setting of this program"),
        ("ZIYA_VISION_PROT", "1", "ZIYA_VISION_PROT is not a setting of this program; did you mean ZIYA_VISION_PORT?"),
        ("ziya_redis_ulr", "x", "ziya_redis_ulr is not a setting of this program; did you mean ZIYA_REDIS_URL?"),
        ("ZIYA_VISION_PORT", "many", "ZIYA_VISION_PORT: input should be a valid integer"),
        ("ZIYA_VISION_PORT", "many", "not 'many'"),
        ("ZIYA_LOG_LEVEL", "LOUD", "ZIYA_LOG_LEVEL: "),
        ("ZIYA_REQUEST_TIMEOUT", "0", "ZIYA_REQUEST_TIMEOUT: input should be greater than 0"),
        ("ZIYA_REDIS_URL", "localhost:6379", "ZIYA_REDIS_URL: "),
    ],
)
def test_a_wrong_name_or_value_stops_the_start(name: str, value: str, complaint: str) -> None:
    done = start(**{name: value})
    assert done.returncode == 2
    assert done.stdout == ""
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_all_wrong_values_are_named_at_once() -> None:
    done = start(ZIYA_VISION_PORT="x", ZIYA_DRAIN_SECONDS="-1")
    assert done.returncode == 2
    assert {line.partition(":")[0] for line in done.stderr.splitlines()} == {"ZIYA_VISION_PORT", "ZIYA_DRAIN_SECONDS"}


def test_a_missing_value_is_named() -> None:
    others = {name: value for name, value in os.environ.items() if not name.upper().startswith("ZIYA_")}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=others, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, "ZIYA_CHECKPOINT is not set, and it has no default\n")


def test_a_password_is_not_printed() -> None:
    done = start(ZIYA_REDIS_URL="http://user:secret@redis")
    assert done.returncode == 2
    assert "secret" not in done.stderr


def test_settings_cannot_be_changed_later() -> None:
    settings = Settings(checkpoint=Path("/models/ziya"))
    with pytest.raises(ValidationError):
        settings.vision_port = 1  # type: ignore[misc]


@pytest.mark.parametrize(("port", "chosen", "expected"), [(9001, None, 9101), (0, None, 0), (9001, 7, 7), (9001, 0, 0)])
def test_the_metrics_port(port: int, chosen: int | None, expected: int) -> None:
    assert metrics_port(port, chosen) == expected
