"""Compiles the C++ forward pass into shared libraries beside its sources: `python -m …engine.kernels.build`.

Done once, where the package is set up or its wheel is made; the libraries have no Python in them, so that they serve
every version. One is for x86 processors with AVX-512 and its bfloat16 and VNNI instructions, one for those with AVX2;
elsewhere the engine runs on torch.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from services.llama.engine.kernels import FOLDER, path

TARGETS = {"avx512": ["-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni"], "avx2": ["-march=x86-64-v3"]}
FLAGS = ["-O3", "-std=c++20", "-shared", "-fPIC", "-pthread"]
# no multiply-adds but those that are asked for, so that a row gets the same bits in every loop that it may go through
FLAGS += ["-ffp-contract=off"]
# libstdc++ inside: a slim image has the C library, but not always C++'s
FLAGS += ["-static-libstdc++", "-static-libgcc", "-fvisibility=hidden", "-Wno-ignored-attributes"]


def build(compiler: str) -> list[Path]:
    """Compiles to files of their own and puts those in place, so that a running engine keeps the one it has.

    Raises CalledProcessError when a compiler fails.
    """
    made = {path(name): path(name).with_suffix(f".{os.getpid()}") for name in TARGETS}
    commands = [command(compiler, name, FOLDER / "engine.cpp", made[path(name)]) for name in TARGETS]
    running = [subprocess.Popen(one) for one in commands]  # side by side: each takes a quarter of a minute
    codes = [process.wait() for process in running]  # of all, so that none is left behind when one fails
    for one, code in zip(commands, codes, strict=True):
        if code:
            raise subprocess.CalledProcessError(code, one)
    for place, new in made.items():
        new.replace(place)
    return list(made)


def command(compiler: str, instructions: str, source: Path, library: Path) -> list[str]:
    return [compiler, *FLAGS, *TARGETS[instructions], str(source), "-o", str(library)]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def main() -> int:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if platform.machine() != "x86_64":
        _say(f"no kernels for {platform.machine()} processors: the LLaMA engine will run on torch")
    elif not compiler:
        _say("no kernels: g++ is missing (apt-get install g++), so the LLaMA engine will run on torch, more slowly")
    else:
        _say(f"built {' and '.join(library.name for library in build(compiler))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
