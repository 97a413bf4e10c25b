"""The operator's two programs as they run in production: processes on a real Redis, each with an account of its own.

They are on a leash and die with the test, and their times are short, so that tests are.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.redis_server import RedisServer
from ziya.leash import on_leash

ROOT = Path(__file__).parent.parent
WATCHER, WORKER = "watcher", "worker"
ACCOUNTS = {WATCHER: "ziya-operator", WORKER: "ziya-operator-worker"}
_MODULES = {WATCHER: "services.operator.app", WORKER: "services.operator.worker"}


def free_port() -> int:
    """One that stays free while nobody listens on it: below those that the system gives to connections."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Programs:
    """Whoever inherits says where the kubeconfig of an account is. Logs lie in `folder`."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        (folder / "redis").mkdir(parents=True)
        self.redis = RedisServer(folder / "redis")
        self.port = free_port()
        self.settings = {
            "ZIYA_OPERATOR_BROKER_URL": self.redis.url,
            "ZIYA_OPERATOR_RESYNC_SECONDS": "2",
            "ZIYA_OPERATOR_PROGRESS_SECONDS": "0.2",
            "ZIYA_OPERATOR_PROGRESS_PORT": str(self.port),
            "ZIYA_OPERATOR_PROGRESS_URL": f"http://127.0.0.1:{self.port}",
            "ZIYA_OPERATOR_HEARTBEAT_FILE": str(folder / "heartbeat"),
            **settings,
        }
        self.programs: dict[str, subprocess.Popen[bytes]] = {}

    def kubeconfig(self, account: str) -> Path:
        raise NotImplementedError

    def start(self, name: str, **settings: str) -> None:
        """`settings` go before those of all programs."""
        kubeconfig = {"ZIYA_OPERATOR_KUBECONFIG": str(self.kubeconfig(ACCOUNTS[name]))}
        # Programs refuse names that are not their own.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ZIYA_TEST_")}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.programs[name] = subprocess.Popen(
                [*on_leash(signal.SIGKILL), sys.executable, "-m", _MODULES[name]],
                cwd=ROOT,
                env={**inherited, **self.settings, **kubeconfig, **settings},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """All that were started run."""
        for name, program in self.programs.items():
            if program.poll() is not None:
                raise AssertionError(f"the {name} has ended with code {program.returncode}:\n{self.log(name)[-6000:]}")

    def kill(self, name: str) -> None:
        """With all of its children, at once."""
        program = self.programs.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()

    def end(self) -> None:
        """All of them."""
        for name in [*self.programs]:
            self.kill(name)
        self.redis.kill()

    def log(self, name: str) -> str:
        file = self.folder / f"{name}.log"
        return file.read_text("utf-8", "replace") if file.exists() else ""
