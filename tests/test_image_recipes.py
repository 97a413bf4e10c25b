"""What images are made of, checked without building one: paths, rights, pins, and that all that runs in them is there.

`make imagetest` (tests/image_trial.py) installs and builds for real.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from services.gateway.settings import Settings as GatewaySettings
from services.llama.settings import Settings as LlamaSettings
from services.qformer.app import Settings as QFormerSettings
from services.vision.app import Settings as VisionSettings
from tests.helm import CASES, Object, containers, needs_helm, pods, rendered
from tests.image_recipes import DOCKERFILE, ROOT, TARGETS, app_version, extras, line, pip_installs, stages
from tests.parsed import parsed

OURS = {"protos", "ziya", "services", "training", "cli"}
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text("utf-8"))
SETTINGS = {
    "gateway": GatewaySettings,
    "vision": VisionSettings,
    "qformer": QFormerSettings,
    "llama": LlamaSettings,
}


def tracked() -> set[str]:
    """All files that git knows, and their folders."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = set(done.stdout.splitlines())
    return files | {str(parent) for file in files for parent in Path(file).parents}


def test_every_image_of_the_chart_has_its_target() -> None:
    values = (ROOT / "charts" / "ziya-visual" / "values.yaml").read_text("utf-8")
    named = set(re.findall(r"repository: ziya-visual-(\w+)", values))
    assert named == set(TARGETS) <= set(stages())


def test_every_path_that_is_copied_exists_and_comes_through() -> None:
    known = tracked()
    let_in = [one for one in (ROOT / ".dockerignore").read_text("utf-8").split() if one.startswith("!")]
    copied = 0
    for stage in stages().values():
        for step in stage.of("COPY"):
            if step.flag("from"):
                assert step.flag("from") in stages()
                continue
            for source in step.words[:-1]:
                copied += 1
                assert source in known, f"{stage.name} copies {source}, which is not in the repository"
                assert any(f"{source}/".startswith(f"{one[1:]}/") for one in let_in), f".dockerignore hides {source}"
    assert copied > 10


def test_what_is_mounted_is_a_stage() -> None:
    mounts = re.findall(r"--mount=type=bind,from=(\w+)", DOCKERFILE.read_text("utf-8"))
    assert set(mounts) == {"outline", "wheel"} <= set(stages())


@pytest.mark.parametrize("target", TARGETS)
def test_nobody_is_root_in_an_image(target: str) -> None:
    [*_, last] = [step for stage in line(target) for step in stage.of("USER")]
    assert last.words == ("10001:10001",)
    assert [step.name for step in stages()[target].steps[-2:]] == ["USER", "CMD"]


@pytest.mark.parametrize("target", [*TARGETS, "wheel"])
def test_every_package_is_pinned(target: str) -> None:
    found = list(pip_installs(target))
    assert found
    for words in found:
        assert "-c" in words, words
        assert words[words.index("-c") + 1].endswith("deploy/constraints.txt")
    pins = (ROOT / "deploy" / "constraints.txt").read_text("utf-8").splitlines()
    assert "-c ../constraints.txt" in pins
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", one) for one in pins if one and one[0] not in "#-")


@pytest.mark.parametrize("target", TARGETS)
def test_bases_are_of_a_version(target: str) -> None:
    base = line(target)[0].base
    assert re.fullmatch(r"\$\{\w+\}", base)
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE.read_text("utf-8"), re.MULTILINE))
    assert re.search(r":[\d.]+-", arguments[base.strip("${}")])


def runs() -> Iterator[tuple[str, str]]:
    """Images of ours and modules that the chart, in one case or another, runs in them."""
    for case in CASES:
        for pod in pods(rendered(case)):
            for container in containers(pod):
                image = container["image"].rpartition("/")[2].partition(":")[0].removeprefix("ziya-visual-")
                for command in [container["command"], *_probes(container)]:
                    if command[:2] == ["python", "-m"]:
                        yield image, command[2]
                    else:
                        assert command[0] in ("python", "tritonserver", "sleep", "sh", "redis-cli"), command
    yield "llama", "services.llama.host"  # of Triton's model
    yield "llama", "services.llama.lifeline"
    yield "trainer", "training.launch"  # the operator's own pods: services/operator/manifests.py


def _probes(container: Object) -> Iterator[list[str]]:
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        if "exec" in container.get(name, {}):
            yield container[name]["exec"]["command"]


@needs_helm
def test_what_the_chart_runs_is_in_the_image_that_it_runs() -> None:
    """By imports: every distribution that the program needs comes with the extras of its image."""
    found = set(runs())
    assert len(found) >= 8
    for image, module in sorted(found):
        missing = needed(module) - offered(extras(image))
        assert not missing, f"{module} in {image} needs {missing}"


def needed(module: str) -> set[str]:
    """Distributions that a program's own code imports, anywhere in it and in what it imports of ours."""
    known, found, waiting, seen = packages_distributions(), set[str](), [module], set[str]()
    while waiting:
        one = waiting.pop()
        if one in seen or (source := _source(one)) is None:
            continue
        seen.add(one)
        for name in imported(parsed(source.read_text("utf-8"))):
            top = name.partition(".")[0]
            if top in OURS:
                waiting += [name, name.rpartition(".")[0]]
            elif top in known:
                found.add(normal(known[top][0]))
    return found


def _source(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imported(node: ast.AST) -> Iterator[str]:
    """Names of modules, and of what is taken from them, which may be modules; none that is for type checkers alone."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Import):
        yield from (one.name for one in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{one.name}" for one in node.names)
    for child in ast.iter_child_nodes(node):
        yield from imported(child)


def offered(chosen: set[str]) -> set[str]:
    """Distributions that our package brings with these extras, and all that those bring."""
    waiting = [Requirement(text) for text in requires("ziya-visual") or []]
    waiting = [one for one in waiting if any(_applies(one, extra) for extra in ("", *chosen))]
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    while waiting:
        one = waiting.pop()
        for extra in ("", *one.extras):
            if (normal(one.name), extra) in seen:
                continue
            seen.add((normal(one.name), extra))
            found.add(normal(one.name))
            waiting += [inner for text in _requires(one.name) if _applies(inner := Requirement(text), extra)]
    return found


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except ModuleNotFoundError:  # of another system, and so not here
        return []


def _applies(one: Requirement, extra: str) -> bool:
    return one.marker is None or one.marker.evaluate({"extra": extra})


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of the package as it is built from what git knows."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    archive = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, archive.decode().split("\0")):
        if name.split("/")[0] in ("protos", "ziya", "services", "training", "cli") or "/" not in name:
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", made, source]
    subprocess.run(command, check=True, timeout=110, capture_output=True)
    with zipfile.ZipFile(next(made.glob("*.whl"))) as package:
        return set(package.namelist())


def test_the_package_holds_every_file_that_its_programs_read(wheel: set[str]) -> None:
    done = subprocess.run(
        ["git", "ls-files", "services", "training", "ziya", "cli"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    wanted = set(done.stdout.splitlines())
    assert any(not name.endswith(".py") for name in wanted)
    assert wanted <= wheel


def test_paths_in_the_images_are_those_of_the_chart() -> None:
    values = yaml.safe_load((ROOT / "charts" / "ziya-visual" / "values.yaml").read_text("utf-8"))
    for target in ("gateway", "vision", "qformer", "llama"):
        copies = {step.words[-1] for step in stages()[target].of("COPY")}
        assert values["model"]["path"] in copies
    assert "/opt/ziya/model_repository" in {step.words[-1] for step in stages()["llama"].of("COPY")}


def test_the_version_is_one() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert package == app_version()
    images = [one["image"] for one in COMPOSE["services"].values() if "ziya-visual" in one["image"]]
    assert [image.rpartition("TAG:-")[2] for image in images] == [f"{app_version()}}}"] * len(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_compose_gives_each_program_settings_that_it_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = COMPOSE["services"][name]
    for key in [key for key in service["environment"] if key.startswith("ZIYA_")]:
        monkeypatch.setenv(key, service["environment"][key])
    loaded = SETTINGS[name].load()
    assert loaded.host == "0.0.0.0"
    grace = float(service["stop_grace_period"].removesuffix("s"))
    assert grace > (2 if name == "qformer" else 1) * loaded.drain_seconds


def test_compose_names_what_there_is() -> None:
    services = COMPOSE["services"]
    ports = {"vision": 9001, "qformer": 9002, "llama": 8001}
    for name, port in ports.items():
        variable = {"llama": "TRITON"}.get(name, name.upper())
        assert services["gateway"]["environment"][f"ZIYA_GATEWAY_{variable}"] == f"{name}:{port}"
    for name, service in services.items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["user"] == "10001:10001"
        assert service["healthcheck"]["test"]
        assert set(service.get("depends_on", {})) <= set(services)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert set(service["networks"]) <= set(COMPOSE["networks"]), name
