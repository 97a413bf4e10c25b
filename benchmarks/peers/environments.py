"""One virtual environment a peer, with exactly the packages that were measured.

Each has a file of pins beside this one, complete, so nothing is resolved: what a peer asks for and this measurement
does not need (torchvision and others of vLLM, whose builds bring CUDA) is left out on purpose.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Environment:
    """`proof` is what it must be able to import; `build` are settings for packages that are compiled."""

    name: str
    proof: str
    arguments: tuple[str, ...] = ()
    build: dict[str, str] = field(default_factory=dict)

    @property
    def pins(self) -> Path:
        return HERE / f"constraints-{self.name}.txt"


ENVIRONMENTS = (
    Environment("vllm", "vllm"),
    Environment("openvino", "openvino_genai, optimum.intel"),
    Environment(
        "llamacpp",
        "llama_cpp, gguf",
        # From source, for this very processor; one compiler at a time, for it takes memory. Tens of minutes.
        ("--no-binary", "llama-cpp-python"),
        {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CMAKE_BUILD_PARALLEL_LEVEL": "1"},
    ),
)


def python(folder: Path, name: str) -> Path:
    return folder / name / "bin" / "python"


def make(folder: Path, environment: Environment, say: Callable[[str], None]) -> None:
    """Makes or completes the environment `folder`/NAME. Raises CalledProcessError when a step fails."""
    where, interpreter = folder / environment.name, python(folder, environment.name)
    if not interpreter.is_file():
        say(f"making {where}")
        subprocess.run([sys.executable, "-m", "venv", where], check=True)
    install = ["install", "--quiet", "--no-deps", *environment.arguments, "-r", str(environment.pins)]
    subprocess.run([interpreter, "-m", "pip", *install], check=True, env={**os.environ, **environment.build})
    subprocess.run([interpreter, "-c", f"import {environment.proof}"], check=True)
    say(f"{where} is complete")
