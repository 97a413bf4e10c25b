"""The documents keep their word: paths and make targets that they name exist, and house rules hold in every file."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.parsed import parsed

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
MAX_LINES, MAX_TEST_LINES = 300, 500
SOURCES = ("ziya", "services", "training", "cli", "benchmarks", "tests")
BANNED_NAMES = {"utils", "helpers", "common", "misc", "manager", "base"}
# A path in backquotes or a link: begins with a folder of ours, or is a file at the top.
PATH = re.compile(r"[`(]((?:protos|ziya|services|training|cli|tests|benchmarks|docs|checkpoints)/[\w./*-]*)[`):,]")
TARGET = re.compile(r"\bmake ((?:-s )?[a-z]+)")


def tracked(*patterns: str) -> list[Path]:
    """Files that belong to the repository, new ones included, ignored ones not."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


def modules() -> list[Path]:
    return [path for path in tracked("*.py") if path.relative_to(ROOT).parts[0] in SOURCES]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    for name in PATH.findall(document.read_text("utf-8")):
        assert any(ROOT.glob(name.rstrip("/"))), f"{document.name} names {name}, which is not there"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text("utf-8")):
        assert (document.parent / link).exists(), f"{document.name} links to {link}, which is not there"


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_every_make_target_that_is_named_exists(document: Path) -> None:
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for target in TARGET.findall(_code(document)):
        assert target.removeprefix("-s ") in rules, f"{document.name} names `make {target}`"


def test_every_module_says_what_it_is_for() -> None:
    silent = [path for path in modules() if _tree(path).body and not ast.get_docstring(_tree(path))]
    assert not silent


def test_no_module_is_too_long_or_badly_named() -> None:
    for path in modules():
        limit = MAX_TEST_LINES if "tests" in path.parts else MAX_LINES
        assert len(path.read_text("utf-8").splitlines()) <= limit, f"{path} is longer than {limit} lines"
        assert path.stem not in BANNED_NAMES, f"{path}: a name that says nothing"


def test_no_file_holds_a_path_of_somebodys_machine() -> None:
    private = re.compile(r"/(?:root|work|home/\w+|Users)/")
    for path in tracked("*.py", "*.md", "*.toml", "*.txt", "*.json", "*.pbtxt", "Makefile", ".ci/*"):
        assert not private.search(path.read_text("utf-8")), f"{path} holds an absolute path"


def test_constraints_pin_every_package_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    for line in lines:
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+", line), line


def _tree(path: Path) -> ast.Module:
    return parsed(path.read_text("utf-8"))


def _code(document: Path) -> str:
    """The parts of a document that are commands: code blocks and backquotes."""
    text = document.read_text("utf-8")
    if document.suffix != ".md":
        return text
    return "\n".join(block or word for block, word in re.findall(r"```sh\n(.*?)```|`([^`\n]+)`", text, re.DOTALL))
