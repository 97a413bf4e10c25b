"""Runs the LLaMA on this machine in the Triton server that the `nvidia-pytriton` wheel carries: no Docker, no GPU.

The wheel is used for its binaries alone; the model repository is the one that production mounts into NVIDIA's
own image. Two things need help: the backend folder must hold the Python stub of the running interpreter's
version, and that stub must become this very environment. It embeds a Python that ignores PYTHONPATH but, like
any Python, finds its virtual environment by the first `python3` on PATH.
"""

from __future__ import annotations

import os
import secrets
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from ziya.tls import AUTHORITY, CERTIFICATE, KEY

MODEL_REPOSITORY = Path(__file__).parent / "model_repository"
SHARED_MEMORY = Path("/dev/shm")
SHM_BYTES = 16 << 20
RESTRICTED = "metadata,inference,shared-memory,model-config,model-repository,statistics,trace,logging"


class TritonMissing(RuntimeError):
    """No Triton server here; the sentence says how to get one."""


@dataclass(frozen=True)
class TritonOptions:
    """Where to listen (loopback unless told), and `state`: a folder of this server's own for the backend links.

    With `tls_dir` (see ziya/tls.py) gRPC is encrypted, and for callers with a certificate alone. Triton reads the files
    at its start, and never again. Its HTTP knows no certificates: there it tells nobody but those who have the
    `http_secret` (in the header x-ziya-pod) more than whether it is well.
    """

    state: Path
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    host: str = "127.0.0.1"
    exit_seconds: int = 30
    repository: Path = MODEL_REPOSITORY
    tls_dir: Path | None = None
    http_secret: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def backends(self) -> Path:
        return self.state / "backends"

    @property
    def shm_prefix(self) -> str:
        """Shared-memory regions of this server begin with it, so that those of a killed one can be removed."""
        return f"ziya_triton_{self.grpc_port}_"


def command(options: TritonOptions, environ: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """What to run and its whole environment, over `environ`; touches nothing. Raises TritonMissing."""
    wheel = _wheel()
    flags = {
        "model-repository": options.repository,
        "backend-directory": options.backends,
        "backend-config": f"python,shm-region-prefix-name={options.shm_prefix}",
        "http-address": options.host,
        "http-port": options.http_port,
        "grpc-address": options.host,
        "grpc-port": options.grpc_port,
        "metrics-address": options.host,
        "metrics-port": options.metrics_port,
        "allow-gpu-metrics": "false",
        "model-control-mode": "none",
        "exit-timeout-secs": options.exit_seconds,
        "log-info": "false",
        **(_tls_flags(options.tls_dir, options.http_secret) if options.tls_dir is not None else {}),
    }
    # completing the config would start, and throw away, a whole second Python
    argv = [str(wheel / "tritonserver" / "bin" / "tritonserver"), "--disable-auto-complete-config"]
    argv += [f"--{name}={value}" for name, value in flags.items()]
    libraries = [str(wheel.parent / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
    return argv, {
        **environ,
        "LD_LIBRARY_PATH": _joined([*libraries, environ.get("LD_LIBRARY_PATH", "")]),
        "PATH": _joined([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)]),
    }


def _tls_flags(folder: Path, secret: str) -> dict[str, object]:
    return {
        "grpc-use-ssl-mutual": "true",
        "grpc-server-cert": folder / CERTIFICATE,
        "grpc-server-key": folder / KEY,
        "grpc-root-cert": folder / AUTHORITY,
        "http-restricted-api": f"{RESTRICTED}:x-ziya-pod={secret}",
    }


def prepare(options: TritonOptions) -> None:
    """Makes the backend folder, and removes what a killed server of the same ports left in shared memory."""
    wheel = _wheel() / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise TritonMissing(f"the nvidia-pytriton wheel has no Python stub for {version}; use Python 3.11")
    folder = options.backends / "python"
    folder.mkdir(parents=True, exist_ok=True)
    for source in (*(path for path in (wheel / "backends" / "python").iterdir() if path.is_file()), stub):
        link = folder / source.name
        link.unlink(missing_ok=True)
        link.symlink_to(source)
    clean(options)


def clean(options: TritonOptions) -> None:
    """Removes the shared memory of a server that no longer runs; one that ended by itself leaves none."""
    if SHARED_MEMORY.is_dir():
        for region in SHARED_MEMORY.glob(f"{options.shm_prefix}*"):
            region.unlink(missing_ok=True)


def _wheel() -> Path:
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise TritonMissing("no Triton server: `pip install nvidia-pytriton`")
    return Path(next(iter(spec.submodule_search_locations)))


def _joined(folders: list[str | None]) -> str:
    return os.pathsep.join(folder for folder in folders if folder)
