"""A stage of type data in pieces: each built by itself, once, by whoever comes first, and counted by its manifest.

The builder is a Python module. For a stage of one piece it may have `build(folder, **options)`, which writes into the
stage's folder, finds there what it left when it was killed, and may return the names of what it made (by default all
that is there). Else it has `build_shard(folder, shard, shards, **options)`, which writes into an empty draft folder;
what it made is then moved into the stage's folder. Last of all `shards/<number>.json` says which files these are:
without it the piece is not there. When all are there, the stage is done.

A module with `build_shard` may have two things more. Where the function takes an argument `kept`, it is given a folder
that outlives a killed piece. A function `join(folder, shards, **options)` is called in the stage's folder when all
pieces are there: it may write files of other names, the same ones however often it is called, each whole or not at all,
and may return the names of those that the stage cannot do without. It is called by one process at a time, again after
a kill, and never again once done.json says that the stage is finished. What a piece writes below `unjoined/` is there
for `join` alone: it counts as the piece's until then, and is removed when the stage is finished.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import inspect
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from training.errors import BadConfig, BadData
from training.job import Stage
from training.stage_folder import StageFolder, write_json

BUILD, BUILD_SHARD, JOIN, KEPT = "build", "build_shard", "join", "kept"
UNJOINED = "unjoined"
_NAMES, DONE = "shards", "done.json"


@dataclass(frozen=True)
class Pieces:
    """Of one data stage in its folder."""

    stage: Stage
    folder: StageFolder

    def build(self, number: int) -> str:
        """The digest of piece `number`, which is built unless it is there; the last one finishes the stage.

        Raises BadConfig for a builder that is not there or cannot take the options, BadData where pieces collide, and
        what the builder raises.
        """
        if not 0 <= number < self.stage.shards:
            raise BadConfig(f"{self.stage.name} has pieces 0 to {self.stage.shards - 1}, no piece {number}")
        builder = _builder(self.stage, self.folder.path)
        with self._alone(number):
            manifest = self._known(number) or self._built(number, builder)
        self._finish(builder)
        return str(manifest["digest"])

    def missing(self) -> list[int]:
        """Which pieces must be built. All of them, where one is damaged and what was there for `join` is gone."""
        numbers = range(self.stage.shards)
        if all(self._known(number) for number in numbers):
            return []
        return [number for number in numbers if self._manifest(number) is None]

    def _known(self, number: int) -> dict[str, Any] | None:
        """The manifest of a piece that need not be built.

        Another process may finish the stage just now: it says so before it removes what was there for `join`.
        """
        there = self._manifest(number)
        return self._manifest(number, finished=True) if there is None and self._is_finished() else there

    def _path(self, number: int) -> Path:
        return self.folder.path / _NAMES / f"{number}.json"

    def _manifest(self, number: int, finished: bool = False) -> dict[str, Any] | None:
        """None when the piece is not there: never built, built otherwise, or its files are not what they were."""
        return self._whole(self._path(number), "" if not finished else f"{UNJOINED}/")

    def _is_finished(self) -> bool:
        """Whether the stage is, as it is now, and what `join` made is what it was."""
        return self._whole(self.folder.path / DONE) is not None

    def _whole(self, path: Path, but: str = "") -> dict[str, Any] | None:
        """What the file says, if it speaks of this stage and of files that are there; some need not be."""
        try:
            said: dict[str, Any] = json.loads(path.read_text("utf-8"))
            needed = [file for file in said["files"] if not but or not file["path"].startswith(but)]
            whole = all(_size(self.folder.path / file["path"]) == file["size"] for file in needed)
            return said if whole and said["of"] == _identity(self.stage) else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _built(self, number: int, builder: _Builder) -> dict[str, Any]:
        began = time.monotonic()
        (self.folder.path / DONE).unlink(missing_ok=True)
        if builder.whole is not None:
            made = builder.whole(self.folder.path) or _others(self.folder.path)
            files = [_described(path, self.folder.path) for name in made for path in _files(self.folder.path / name)]
        else:
            files = self._drafted(number, builder)
        lines = "".join(f"{file['path']}\0{file['size']}\0{file['sha256']}\n" for file in files)
        manifest = {
            "shard": number,
            "of": _identity(self.stage),
            "digest": f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}",
            "seconds": round(time.monotonic() - began, 1),
            "files": files,
        }
        write_json(self._path(number), manifest)
        return manifest

    def _drafted(self, number: int, builder: _Builder) -> list[dict[str, Any]]:
        assert builder.piece is not None
        # Beside the pieces, so that moving is renaming. What a killed process leaves goes with the next try.
        with tempfile.TemporaryDirectory(prefix=f".{number}.", dir=self.folder.path / _NAMES) as name:
            draft = Path(name, "draft")
            draft.mkdir()
            builder.piece(draft, number)
            files = [_described(path, draft) for path in _files(draft)]
            self._refuse_taken(number, files)
            _move(draft, self.folder.path)
        return files

    def _refuse_taken(self, number: int, files: list[dict[str, Any]]) -> None:
        mine = {file["path"] for file in files}
        if own := sorted(mine & {DONE} | {path for path in mine if path.startswith(f"{_NAMES}/")}):
            raise BadData(f"{self.stage.name}: piece {number} makes {own[0]}, a name that the stage keeps for itself")
        for other in range(self.stage.shards):
            theirs = self._manifest(other) if other != number else None
            if theirs and (both := sorted(mine & {file["path"] for file in theirs["files"]})):
                raise BadData(f"{self.stage.name}: pieces {other} and {number} both make {both[0]}: names must differ")

    def _finish(self, builder: _Builder) -> None:
        """If all pieces are there; who comes while another process joins them waits, and finds it done."""
        if self.missing():
            return
        with self._alone("join"):
            if not self._is_finished():
                self._join(builder)
            if self._is_finished():
                shutil.rmtree(self.folder.path / UNJOINED, ignore_errors=True)

    def _join(self, builder: _Builder) -> None:
        there = [manifest for number in range(self.stage.shards) if (manifest := self._manifest(number))]
        if len(there) < self.stage.shards:
            return
        made = (builder.join() if builder.join is not None else None) or ()
        files = [{"path": name, "size": _size(self.folder.path / name)} for name in made]
        digests = "".join(f"{manifest['digest']}\n" for manifest in there)
        artifact = {
            "path": self.folder.path.name,
            "digest": f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}",
        }
        summary = {"stage": self.stage.name, "of": _identity(self.stage), "artifact": artifact}
        seconds = round(sum(manifest["seconds"] for manifest in there), 1)
        self.folder.finish({**summary, "seconds": seconds, "files": files})

    @contextmanager
    def _alone(self, number: int | Literal["join"]) -> Iterator[None]:
        """A message may come twice: the second one waits here, and then finds the piece."""
        names = self.folder.path / _NAMES
        names.mkdir(parents=True, exist_ok=True)
        with (names / f".{number}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for debris in names.glob(f".{number}.*/"):
                shutil.rmtree(debris, ignore_errors=True)
            yield


def _identity(stage: Stage) -> str:
    """What the pieces follow from; a manifest of another builder or other options is none of theirs."""
    said = json.dumps([stage.builder, stage.options, stage.shards], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


class _Builder(NamedTuple):
    """One of the two, with the stage's options."""

    whole: Callable[[Path], Sequence[str] | None] | None = None
    piece: Callable[[Path, int], object] | None = None
    join: Callable[[], Sequence[str] | None] | None = None


def _builder(stage: Stage, place: Path) -> _Builder:
    try:
        module = importlib.import_module(stage.builder or "")
    except (ImportError, ValueError) as error:
        raise BadConfig(f"{stage.name}: builder {stage.builder!r} cannot be imported: {error}") from error
    build, build_shard = getattr(module, BUILD, None), getattr(module, BUILD_SHARD, None)
    if build_shard is not None:
        return _piecewise(stage, place, build_shard, getattr(module, JOIN, None))
    if build is None:
        raise BadConfig(f"{stage.name}: builder {stage.builder!r} has no function {BUILD!r} or {BUILD_SHARD!r}")
    if stage.shards != 1:
        raise BadConfig(
            f"{stage.name}: builder {stage.builder!r} has no function {BUILD_SHARD!r}: it cannot build {stage.shards} "
            "pieces, so shards must be 1"
        )
    _check_options(stage, build)
    return _Builder(whole=lambda folder: build(folder, **stage.options))


def _piecewise(
    stage: Stage, place: Path, build_shard: Callable[..., object], join: Callable[..., Any] | None
) -> _Builder:
    more = {KEPT: place / KEPT} if KEPT in inspect.signature(build_shard).parameters else {}
    _check_options(stage, build_shard, 0, stage.shards, **more)
    return _Builder(
        piece=lambda folder, number: build_shard(folder, number, stage.shards, **stage.options, **more),
        join=(lambda: join(place, stage.shards, **stage.options)) if join is not None else None,
    )


def _check_options(stage: Stage, function: Callable[..., object], *given: int, **more: Path) -> None:
    try:
        inspect.signature(function).bind(Path(), *given, **stage.options, **more)
    except TypeError as error:
        raise BadConfig(f"{stage.name}.options do not fit {stage.builder}.{function.__name__}: {error}") from error


def _others(folder: Path) -> list[str]:
    """Names of all that is there, but for what is of the stage itself."""
    return sorted(path.name for path in folder.iterdir() if path.name not in (_NAMES, DONE))


def _files(folder: Path) -> Iterator[Path]:
    """Files and links at and below it, in the order of their names; not what folders that are links hold."""
    if folder.is_symlink() or not folder.is_dir():
        yield folder
    for outer, folders, files in os.walk(folder):
        folders.sort()
        links = [name for name in folders if Path(outer, name).is_symlink()]
        yield from (Path(outer, name) for name in sorted([*files, *links]))


def _described(path: Path, folder: Path) -> dict[str, Any]:
    link = path.is_symlink()
    with path.open("rb") if not link else open(os.devnull, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": path.relative_to(folder).as_posix(), "size": _size(path), "sha256": "" if link else digest}


def _size(path: Path) -> int:
    return path.lstat().st_size


def _move(source: Path, target: Path) -> None:
    """Everything in `source` to the same place in `target`; folders that are there already take in what is new."""
    for one in source.iterdir():
        there = target / one.name
        if one.is_dir() and not one.is_symlink() and there.is_dir() and not there.is_symlink():
            _move(one, there)
        else:
            if there.is_dir() and not there.is_symlink():
                shutil.rmtree(there)
            one.replace(there)
