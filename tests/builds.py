"""Builds as a person runs them: the command in a process of its own, and what it leaves, read back."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.data.shards import Dataset
from ziya.leash import on_leash

ROOT = Path(__file__).parent.parent
SERVER = ("--rule", "tests.build_rules:answer")


def command(source: Path, output: Path, url: str, *options: str) -> list[str]:
    said = [str(source), str(output), "--url", url, "--model", "translator", *options]
    return [sys.executable, "-m", "cli.main", "data", "build", *said]


def start(source: Path, output: Path, url: str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*on_leash(signal.SIGKILL), *command(source, output, url, *options)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def build(source: Path, output: Path, url: str, *options: str) -> str:
    """What it printed, once it has ended well."""
    process = start(source, output, url, *options)
    out, errors = ended(process)
    assert process.returncode == 0, errors
    return out


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it printed; if the test ends first, so does the process."""
    try:
        return process.communicate()
    except BaseException:
        process.kill()
        process.communicate()
        raise


def refused(source: Path, output: Path, url: str, *options: str) -> tuple[int, str]:
    """The code and the sentence of a build that must not end well."""
    process = start(source, output, url, *options)
    _, errors = ended(process)
    assert process.returncode, "it should have been refused"
    assert "Traceback" not in errors, errors
    return process.returncode, errors.strip()


def manifest(output: Path) -> dict[str, Any]:
    return json.loads((output / "manifest.json").read_text("utf-8"))


def records(output: Path) -> Iterator[dict[str, Any]]:
    dataset = Dataset.open(str(output))
    for number in range(len(dataset)):
        yield dict(dataset.record(number).fields)


def digests(output: Path) -> dict[str, str]:
    """Of every file whose bytes must be the same in equal builds."""
    kept = [*output.glob("part-*"), output / "index.json", output / "manifest.json", *(output / "pieces").iterdir()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(kept)}
