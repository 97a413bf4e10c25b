"""The chart's own Redis as a container would run it: its script, arguments and rules, in a folder of the test's."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import psutil

from tests.certificates import Authority
from tests.debian_redis import CLIENT, SERVER
from tests.helm import CHART, named, rendered
from ziya.redis_login import RedisLogin

USERS = ("gateway", "vision", "qformer", "llama", "operator")
START_SECONDS = STOP_SECONDS = 20


class ChartRedis:
    """As the chart's `case` has it. `folder` must have a short path. Passwords and certificates are files below it."""

    def __init__(self, case: str, folder: Path, port: int, authority: Authority | None = None) -> None:
        self.folder, self.port, self.authority = folder, port, authority
        [container] = named(rendered(case), "StatefulSet", "redis")["spec"]["template"]["spec"]["containers"]
        mounted = {one["mountPath"] for one in container["volumeMounts"]}
        self.tls, self.logins = "/etc/ziya/tls" in mounted, "/etc/ziya/passwords" in mounted
        for name in ("data", "bin"):
            (folder / name).mkdir()
        if self.tls:
            assert authority is not None
            authority.issue(folder / "tls", common_name="redis")
            authority.issue(folder / "client", common_name="client")
        for user in USERS if self.logins else ():
            self.set_password(user, f"{user}-first")
        for name, binary in {"redis-server": SERVER, "redis-cli": CLIENT}.items():
            (folder / "bin" / name).symlink_to(binary)
        places = {"/data": folder / "data", "/etc/ziya/tls": folder / "tls"}
        self._argv = ["sh", str(CHART / "files" / "redis.sh")]
        arguments = "\n".join(container["args"])
        for place, own in places.items():
            arguments = arguments.replace(place, str(own))
        self._argv += [str(port) if word == "6379" else word for word in arguments.split("\n")]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it takes connections."""
        places = {"STATE": "data", "PASSWORDS": "passwords", "TLS": "tls"}
        environment = {name: str(self.folder / place) for name, place in places.items()}
        environment |= {"RULES": str(CHART / "files" / "redis-users.acl"), "PAUSE": "0.2", "OVERLAP": "10"}
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self._argv, env={**os.environ, **environment, "PATH": path}, stdout=log, stderr=subprocess.STDOUT
            )
        end = time.monotonic() + START_SECONDS
        while "eady to accept connections" not in self.log:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"Redis did not start:\n{self.log}")
            time.sleep(0.02)

    def stop(self) -> int:
        """Its exit status. Returns when the script's second half has noticed, too."""
        assert self._process is not None
        self._process.terminate()
        status = self._process.wait(20)
        self._process = None
        script, folder = str(CHART / "files" / "redis.sh"), str(self.folder)
        end = time.monotonic() + STOP_SECONDS
        while left := [one.pid for one in psutil.process_iter(["cmdline"]) if _runs(one, script, folder)]:
            if time.monotonic() > end:
                raise RuntimeError(f"processes {left} go on without Redis")
            time.sleep(0.05)
        return status

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8")

    def set_password(self, user: str, password: str) -> None:
        """Writes the Secret's file, as the kubelet does, in one step, and the user's own."""
        for path, content in {
            self.folder / "passwords" / user: password,
            self.folder / "own" / user: password,
        }.items():
            path.parent.mkdir(exist_ok=True)
            beside = path.parent.parent / f".{user}"
            beside.write_text(content, "utf-8")
            beside.replace(path)

    def url(self, user: str = "") -> str:
        return f"{'rediss' if self.tls else 'redis'}://{f'{user}@' if user else ''}localhost:{self.port}/0"

    def login(self, user: str) -> RedisLogin:
        return RedisLogin(self.folder / "client" if self.tls else None, self.folder / "own" / user)

    def environment(self, user: str, variable: str = "ZIYA_REDIS_URL") -> dict[str, str]:
        """What a program gets from the chart, for here."""
        login = self.login(user)
        tls = {"ZIYA_REDIS_TLS_DIR": str(login.tls_dir)} if login.tls_dir else {}
        return {variable: self.url(user), "ZIYA_REDIS_PASSWORD_FILE": str(login.password_file), **tls}


def _runs(process: psutil.Process, script: str, folder: str) -> bool:
    words = process.info["cmdline"] or []
    return script in words and any(word.startswith(folder) for word in words)
