"""Compiles the C++ forward pass into a shared library beside its sources: `python -m …engine.kernels.build`.

Done once, where the package is set up or its wheel is made; the library has no Python in it, so that one serves every
version. It is made for x86 processors with AVX-512, bfloat16 and VNNI instructions; elsewhere the engine runs on torch.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from services.llama.engine.kernels import LIBRARY

FLAGS = ["-O3", "-std=c++20", "-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni", "-shared", "-fPIC", "-pthread"]
# no multiply-adds but those that are asked for, so that a row gets the same bits in every loop that it may go through
FLAGS += ["-ffp-contract=off"]
# libstdc++ inside: a slim image has the C library, but not always C++'s
FLAGS += ["-static-libstdc++", "-static-libgcc", "-fvisibility=hidden", "-Wno-ignored-attributes"]


def build(compiler: str) -> Path:
    """Compiles to a file of its own and puts that in place, so that a running engine keeps the one it has."""
    made = LIBRARY.with_suffix(f".{os.getpid()}")
    subprocess.run([compiler, *FLAGS, str(LIBRARY.with_name("engine.cpp")), "-o", str(made)], check=True)
    made.replace(LIBRARY)
    return LIBRARY


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def main() -> int:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if platform.machine() != "x86_64":
        _say(f"no kernels for {platform.machine()} processors: the LLaMA engine will run on torch")
    elif not compiler:
        _say("no kernels: g++ is missing (apt-get install g++), so the LLaMA engine will run on torch, more slowly")
    else:
        _say(f"built {build(compiler).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
