"""deploy/Dockerfile as Docker's own parser reads it: its stages, and what a target is made of."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import dockerfile
import yaml

ROOT = Path(__file__).parents[1]
DOCKERFILE, CHART = ROOT / "deploy" / "Dockerfile", ROOT / "charts" / "ziya-visual"
TARGETS = ("gateway", "vision", "qformer", "llama", "operator", "trainer")


@dataclass(frozen=True)
class Step:
    """One instruction: `words` as written, flags such as --from apart."""

    name: str
    words: tuple[str, ...]
    flags: tuple[str, ...]

    def flag(self, name: str) -> str:
        """Its value; empty for none."""
        return next((one.partition("=")[2] for one in self.flags if one.startswith(f"--{name}=")), "")


@dataclass
class Stage:
    """`base` is another stage or an image."""

    name: str
    base: str
    steps: list[Step] = field(default_factory=list)

    def of(self, name: str) -> list[Step]:
        return [step for step in self.steps if step.name == name]


@cache
def stages() -> dict[str, Stage]:
    """All of them, in their order."""
    found: dict[str, Stage] = {}
    for one in dockerfile.parse_file(str(DOCKERFILE)):
        if one.cmd == "FROM":
            base, _, name = one.value
            found[name] = Stage(name, base)
        elif found:
            [*_, last] = found.values()
            last.steps.append(Step(one.cmd, one.value, one.flags))
    return found


def line(target: str) -> list[Stage]:
    """The stages that a target is built upon, from its outer base to itself."""
    found = [stages()[target]]
    while found[0].base in stages():
        found.insert(0, stages()[found[0].base])
    return found


def pip_installs(target: str) -> Iterator[list[str]]:
    """The words of every `pip … install` and `pip wheel` of a target and of what it is built upon."""
    for stage in line(target):
        for step in stage.of("RUN"):
            for command in re.split(r"&&", step.words[0]):
                words = shlex.split(command.replace("$(", "(").replace('"', ""))
                if any(word.endswith("pip") for word in words[:1]) and {"install", "wheel"} & set(words):
                    yield words


def extras(target: str) -> set[str]:
    """The extras of our package that a target installs."""
    text = " ".join(word for words in pip_installs(target) for word in words)
    return {extra for found in re.findall(r"whl\)\[([\w,-]+)\]", text) for extra in found.split(",")}


def app_version() -> str:
    return str(yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))["appVersion"])
