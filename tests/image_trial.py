"""Images for real, which takes minutes: `python -m tests.image_trial venv|build [TARGET …]`.

`venv` installs what each target of deploy/Dockerfile installs, by its own extras and pins, into a fresh environment,
and starts there what the image runs. `build` builds targets with buildah, which needs no engine, on a base that
debootstrap makes (root, Debian's packages `buildah` and `debootstrap`), and runs the gateway and vision as the chart
does: as user 10001 on a root that cannot be written, with the shipped checkpoint, until they say that they are ready.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from tests.image_recipes import ROOT, TARGETS, app_version, extras
from tests.triton_server import free_ports

PROGRAMS = {
    "gateway": ["services.gateway.app"],
    "vision": ["services.vision.app"],
    "qformer": ["services.qformer.app"],
    "llama": ["services.llama.host"],
    "operator": ["services.operator.app", "services.operator.worker"],
    "trainer": ["training.launch", "training.download", "services.operator.worker"],
}
BUILT = ("gateway", "operator", "vision")
BASE, PACKAGES = "localhost/python-debian:3.11", "python3,python3-venv,python3-pip,ca-certificates"
# Binds a root upon itself read-only, with what a container has besides, and becomes the image's user.
ENTER = """
mount --bind "$0" "$0"; mount -o remount,ro,bind "$0"
mount -t tmpfs none "$0/tmp"; mount -t proc proc "$0/proc"; mount --rbind /dev "$0/dev"
exec chroot --userspec=10001:10001 "$0" env -i "$@"
"""


def main(kind: str, targets: Sequence[str]) -> None:
    """Ends with what failed, if anything."""
    with tempfile.TemporaryDirectory(prefix="ziya-images-") as folder:
        if kind == "venv":
            for target in targets or TARGETS:
                try_in_venv(target, Path(folder))
        else:
            build(targets or BUILT, Path(folder))


def try_in_venv(target: str, folder: Path) -> None:
    """Raises CalledProcessError or AssertionError."""
    started, venv = time.monotonic(), folder / target
    run(sys.executable, "-m", "venv", venv)
    chosen = f"{ROOT}[{','.join(sorted(extras(target)))}]"
    pins = ["-c", ROOT / "deploy" / "constraints.txt"]
    # Generated code is not in the repository; a wheel from here has it, since `make protos` has run.
    run(venv / "bin" / "pip", "install", "-q", *pins, chosen)
    for module in PROGRAMS[target]:
        run(venv / "bin" / "python", "-c", f"import {module}", cwd=folder)
        if module.startswith("services.") and module.endswith(".app"):
            refused = subprocess.run(
                [venv / "bin" / "python", "-m", module],
                cwd=folder,
                env={"ZIYA_LOG_LEVLE": "INFO", "HOME": str(folder), "PATH": os.environ["PATH"]},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert refused.returncode == 2, refused.stderr
            assert "did you mean ZIYA_LOG_LEVEL" in refused.stderr
    size = sum(path.stat().st_size for path in venv.rglob("*") if path.is_file()) >> 20
    shutil.rmtree(venv)
    told(f"{target}: {', '.join(PROGRAMS[target])} start; {size} MiB, {time.monotonic() - started:.0f} s")


def build(targets: Sequence[str], folder: Path) -> None:
    """Raises CalledProcessError or AssertionError."""
    for program in ("buildah", "debootstrap"):
        if shutil.which(program) is None:
            sys.exit(f"there is no {program} here: apt-get install {program}")
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\nrunroot = "{folder}/run"\ngraphroot = "{folder}/storage"\n', "utf-8"
    )
    os.environ |= {"CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"), "BUILDAH_ISOLATION": "chroot"}
    root = folder / "base"
    run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", root, quiet=True)
    container = run("buildah", "from", "scratch").strip()
    run("buildah", "add", "-q", container, root, "/")
    run("buildah", "commit", "-q", container, BASE)
    run("buildah", "rm", container)
    for target in targets:
        started = time.monotonic()
        image = f"ziya-visual-{target}:{app_version()}"
        words = ["--network", "host", "--build-arg", f"PYTHON_IMAGE={BASE}", *pip_of_this_machine()]
        run("buildah", "build", *words, "-f", "deploy/Dockerfile", "--target", target, "-t", image, ".", quiet=True)
        built = time.monotonic() - started
        answers = starts(target, image) if target in ("gateway", "vision") else "not started"
        told(f"{target}: built in {built:.0f} s; {answers}")
    run("buildah", "rmi", "--all", "--force", quiet=True)


def pip_of_this_machine() -> Iterator[str]:
    """What makes pip in a build find packages as pip does here: its files and variables."""
    here = [Path("/etc/pip.conf"), Path("/etc/xdg/pip"), Path("/etc/ssl/certs")]
    here += [Path(place) for place in os.environ.get("PIP_FIND_LINKS", "").split() if place.startswith("/")]
    for path in here:
        if path.exists():
            yield from ("-v", f"{path}:{path}:ro")
    for name, value in os.environ.items():
        if name.startswith("PIP_") and name != "PIP_CERT":
            yield from ("--env", f"{name}={value}")


def starts(target: str, image: str) -> str:
    """Runs the image's own command until it says that it is ready. Raises AssertionError."""
    http, grpc, metrics = free_ports(3)
    settings = {
        "PATH": "/opt/ziya/venv/bin:/usr/bin:/bin",
        "HOME": "/tmp",
        "ZIYA_CHECKPOINT": "/opt/ziya/checkpoints/ziya-tiny",
        "ZIYA_REDIS_START_SECONDS": "0",
        "OMP_NUM_THREADS": "1",
    }
    if target == "gateway":
        settings |= {"ZIYA_GATEWAY_HTTP_PORT": str(http), "ZIYA_GATEWAY_GRPC_PORT": str(grpc)}
        settings |= {"ZIYA_GATEWAY_METRICS_PORT": str(metrics)}
        url = f"http://127.0.0.1:{http}/healthz"
    else:
        settings |= {f"ZIYA_{target.upper()}_PORT": str(grpc), f"ZIYA_{target.upper()}_METRICS_PORT": str(metrics)}
        url = f"http://127.0.0.1:{metrics}/readyz"
    container = run("buildah", "from", image).strip()
    root = run("buildah", "mount", container).strip()
    words = [f"{name}={value}" for name, value in settings.items()]
    command = ["unshare", "--mount", "sh", "-euc", ENTER, root, *words, "python", "-m", f"services.{target}.app"]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                until_well(url, process)
            finally:
                process.terminate()
            assert process.stdout is not None
            said = process.stdout.read()
            assert process.wait(60) == 0, said
    finally:
        run("buildah", "umount", container)
        run("buildah", "rm", container)
    return "started read-only as 10001, ready, and stopped"


def until_well(url: str, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(url, trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    process.terminate()
    raise AssertionError(f"{url} is not well:\n{process.communicate()[0]}")


def run(*command: object, quiet: bool = False, cwd: Path = ROOT) -> str:
    """Its output; with `quiet` only if it fails."""
    words = [str(word) for word in command]
    errors = subprocess.STDOUT if quiet else None
    done = subprocess.run(words, cwd=cwd, stdout=subprocess.PIPE, stderr=errors, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)[:300]}\n{done.stdout[-4000:]}")
    return done.stdout


def told(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
