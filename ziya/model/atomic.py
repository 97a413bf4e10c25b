"""A folder appears whole or not at all, also when it replaces another one and the writer is killed midway.

The new folder is written beside the target under a hidden name, flushed to the disk, and then takes the
target's place in one system call (Linux can exchange two names). A reader therefore sees the old folder or
the new one. What a killed writer left behind is removed by the next writer.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder to write in; when the block ends well it becomes `target`, else it is removed."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _only_writer_in(target.parent) as alone:
        if alone:
            _remove_leftovers(target)
        draft = target.parent / f".{target.name}.saving-{uuid.uuid4().hex[:12]}"
        draft.mkdir()
        try:
            yield draft
            _flush(draft)
            _take_place(draft, target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _only_writer_in(parent: Path) -> Iterator[bool]:
    """Holds the parent folder's lock; yields False where the file system cannot lock a folder (some NFS)."""
    handle = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _remove_leftovers(target: Path) -> None:
    for leftover in target.parent.glob(f".{target.name}.saving-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _take_place(draft: Path, target: Path) -> None:
    if not target.exists():
        draft.rename(target)
    elif not _exchange(draft, target):
        # Without an atomic exchange the old folder is set aside first, and comes back if the second step fails.
        aside = target.parent / f".{target.name}.before-{uuid.uuid4().hex[:12]}"
        target.rename(aside)
        try:
            draft.rename(target)
        except OSError:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _flush_names(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names atomically; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _flush_names(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
