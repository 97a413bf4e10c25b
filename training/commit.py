"""A folder of files that is either published as a whole or does not count.

A checkpoint is written beside its place as `step-000000100.tmp-<attempt>`, every file on the disk before the folder is
renamed to `step-000000100`, and last of all a COMMIT is put into it: a list of its files with sizes and SHA-256.
Without a COMMIT a folder is debris of a run that was killed; with one whose list does not hold it is damaged.
Neither is ever loaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from training.errors import TrainingError

log = logging.getLogger(__name__)
COMMIT = "COMMIT"
STATE = "state.json"
_VERSION = 1


@dataclass(frozen=True)
class File:
    """One line of a COMMIT."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Published:
    """A checkpoint that has a COMMIT: where it lies, what step it is of, which attempt made it."""

    folder: Path
    step: int
    attempt: int
    files: tuple[File, ...]


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies once it is published."""
    return folder / f"step-{step:09d}"


def describe(path: Path) -> File:
    """Size and digest of a file as it is on the disk now."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return File(path.name, os.fstat(file.fileno()).st_size, digest)


def publish(draft: Path, checkpoint: Published) -> None:
    """Renames `draft` into place and commits it. A whole checkpoint that is there already stays, and `draft` goes.

    Raises OSError, and leaves nothing that looks published.
    """
    target = checkpoint.folder
    if target.exists():
        if problem(target) is None:
            shutil.rmtree(draft)
            return
        discard(target)
    sync(draft)
    draft.rename(target)
    sync(target.parent)
    try:
        _commit(checkpoint)
    except OSError:
        discard(target)
        raise


def read(folder: Path) -> Published:
    """The COMMIT of `folder`; its files are not looked at. Raises TrainingError, or OSError when it cannot be read."""
    path = folder / COMMIT
    try:
        said = json.loads(path.read_text("utf-8"))
        if said["version"] != _VERSION:
            raise TrainingError(f"{path} has version {said['version']}; this program reads version {_VERSION}")
        files = tuple(File(str(one["name"]), int(one["size"]), str(one["sha256"])) for one in said["files"])
        return Published(folder, int(said["step"]), int(said["attempt"]), files)
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is not a list of files: {error}") from error


def problem(folder: Path) -> str | None:
    """What is wrong with the checkpoint in `folder`, as a sentence; None when every byte is as it was published."""
    try:
        checkpoint = read(folder)
        for file in checkpoint.files:
            if (size := (folder / file.name).stat().st_size) != file.size:
                return f"{folder / file.name} has {size} bytes, not {file.size}"
        for file in checkpoint.files:
            if describe(folder / file.name).sha256 != file.sha256:
                return f"{folder / file.name} is not what was published: its SHA-256 differs"
    except (TrainingError, OSError) as error:
        return str(error)
    return None


def newest(folder: Path) -> Published | None:
    """The published checkpoint of the highest step whose every byte is right; damaged ones are named in a warning."""
    for path in reversed(_steps(folder)):
        if not (path / COMMIT).exists():
            continue
        if (wrong := problem(path)) is None:
            return read(path)
        log.warning("%s; this checkpoint is skipped", wrong)
    return None


def sweep(folder: Path, attempt: int) -> None:
    """Removes what earlier attempts left unfinished. For the owner of `folder`."""
    for path in folder.glob("step-*.tmp-*"):
        number = path.name.rpartition("-")[2]
        if number.isdigit() and int(number) < attempt:
            discard(path)
    for path in _steps(folder):
        if not (path / COMMIT).exists():
            discard(path)


def prune(folder: Path, attempt: int, keep: int, resumed: int | None) -> None:
    """Keeps the `keep` newest checkpoints of the line that `attempt` is on; it went on from step `resumed`.

    Later steps of earlier attempts are off that line: they were damaged when this one began. What a newer attempt
    has published is never touched.
    """
    found = [_read_or_none(path) for path in reversed(_steps(folder))]
    mine = [one for one in found if one is not None and one.attempt <= attempt]
    line = [one for one in mine if one.attempt == attempt or resumed is None or one.step <= resumed]
    kept = {one.folder for one in line[:keep]}
    for one in mine:
        if one.folder not in kept:
            try:
                discard(one.folder)
            except OSError as error:
                log.warning("%s cannot be removed: %s", one.folder, error)


def discard(folder: Path) -> None:
    """Removes a folder; its COMMIT goes first, so that being killed in between leaves no damaged checkpoint."""
    (folder / COMMIT).unlink(missing_ok=True)
    # An older attempt may be writing into it at this moment; the next sweep gets the rest.
    shutil.rmtree(folder, ignore_errors=True)


def sync(folder: Path) -> None:
    """Names made, renamed or removed in `folder` are on the disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, text: str) -> None:
    """Writes a file whose content is on the disk when this returns."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _commit(checkpoint: Published) -> None:
    files: Iterable[File] = sorted(checkpoint.files, key=lambda file: file.name)
    value = {
        "version": _VERSION,
        "step": checkpoint.step,
        "attempt": checkpoint.attempt,
        "files": [asdict(file) for file in files],
    }
    draft = checkpoint.folder / f".{COMMIT}.tmp"
    write_synced(draft, json.dumps(value, indent=1) + "\n")
    draft.rename(checkpoint.folder / COMMIT)
    sync(checkpoint.folder)


def _steps(folder: Path) -> list[Path]:
    """Folders that are or were to become checkpoints, by step."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{9,}", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _read_or_none(folder: Path) -> Published | None:
    try:
        return read(folder)
    except (TrainingError, OSError):
        return None
