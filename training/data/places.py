"""Where a dataset's files lie, and how they become local files that can be read at any offset.

A local folder is read where it is. From a URL a file is fetched whole, once: into a cache folder under its SHA-256,
checked before it takes that name, and fetched by one process while the others wait. Files that were used longest
ago make room when the folder grows above its limit; a process that still reads one keeps it until it is done.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import fsspec
import fsspec.core

from training.data.index import File
from training.errors import BadData, TrainingError

try:
    import botocore.exceptions as s3
except ImportError:  # without the extra `s3`, fsspec refuses an s3:// URL when it is opened
    _S3_TROUBLE: tuple[type[Exception], ...] = ()
    _S3_REFUSED: tuple[type[Exception], ...] = ()
else:
    _S3_TROUBLE = (s3.HTTPClientError, s3.ConnectionError)
    _S3_REFUSED = (s3.BotoCoreError,)  # no credentials, no region, a wrong address

log = logging.getLogger(__name__)
CACHE_BYTES = 64 << 30
_PAUSES = (0.2, 1.0, 5.0)  # seconds between tries
_REFUSED = frozenset(range(400, 500)) - {408, 425, 429}  # those three say: not now
# However long a shard takes, as long as it comes: aiohttp would give up after five minutes.
_HTTP = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)}}
_PART = ".part"
_CACHED = re.compile(r"[0-9a-f]{64}(\.part)?")
_GONE = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
_ON_THE_WAY: tuple[type[Exception], ...] = (OSError, aiohttp.ClientError, *_S3_TROUBLE)


class Place(Protocol):
    """A folder somewhere. Both methods raise BadData naming what is missing or damaged, and TrainingError when
    the way there is."""

    @property
    def url(self) -> str: ...

    def read(self, name: str) -> bytes:
        """The content of a small file."""

    def open(self, file: File) -> int:
        """A descriptor of a local file with the content of `file`; the caller closes it."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine. Sizes are checked, digests are not: that would read every shard twice."""

    folder: Path

    @property
    def url(self) -> str:
        return str(self.folder)

    def read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise BadData(f"{self.folder / name} cannot be read: {error.strerror}") from error

    def open(self, file: File) -> int:
        path = self.folder / file.name
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise BadData(f"{path} cannot be read: {error.strerror}") from error
        size = os.fstat(handle).st_size
        if size != file.bytes:
            os.close(handle)
            raise BadData(f"{path} is damaged: it has {size} bytes, the index says {file.bytes}")
        return handle


@dataclass(frozen=True)
class RemoteFolder:
    """A folder behind any fsspec URL. Holds no connection, so that it can go to other processes."""

    url: str
    cache: Path
    limit_bytes: int = CACHE_BYTES

    def read(self, name: str) -> bytes:
        content: bytes = self._tried(name, lambda filesystem, path: filesystem.cat_file(path))
        return content

    def open(self, file: File) -> int:
        path = self.cache / file.sha256
        while (handle := _open_cached(path, file.bytes)) is None:
            self.cache.mkdir(parents=True, exist_ok=True)
            with _sole_writer(path.with_suffix(_PART)) as part:
                # It may have come between the look at the cache and the lock.
                if part is not None and _age_and_size(path)[1] != file.bytes:
                    self._fetch(file, part, path)
        return handle

    def _fetch(self, file: File, part: Path, path: Path) -> None:
        self._tried(file.name, lambda filesystem, source: _download(filesystem, source, part, file))
        part.replace(path)
        _make_room(self.cache, self.limit_bytes, keep=path)

    def _tried(self, name: str, action: Callable[[Any, str], Any]) -> Any:
        """`action(filesystem, path)`; tried again after trouble on the way, not when the file is not there."""
        where = f"{self.url}/{name}"
        for pause in (*_PAUSES, None):
            try:
                filesystem, root = _filesystem(self.url)
                return action(filesystem, f"{root.rstrip('/')}/{name}")
            except _GONE as error:
                raise BadData(f"{where} cannot be read: {error or type(error).__name__}") from error
            except _ON_THE_WAY as error:
                if isinstance(error, aiohttp.ClientResponseError) and error.status in _REFUSED:
                    raise BadData(f"{where} cannot be read: status {error.status}") from error
                if pause is None:
                    raise TrainingError(f"{where} cannot be fetched: {error or type(error).__name__}") from error
                log.warning("%s cannot be fetched, trying again: %s", where, error or type(error).__name__)
                time.sleep(pause)
            except _S3_REFUSED as error:
                raise BadData(f"{where} cannot be read: {error}") from error
        raise AssertionError("the last try returns or raises")


def place_of(url: str, cache: Path | None = None, limit_bytes: int = CACHE_BYTES) -> Place:
    """A local folder for a path or a file: URL, else a remote one. Raises BadData for a URL of no known kind."""
    if "://" not in url:
        return LocalFolder(Path(url))
    if url.startswith("file://"):
        return LocalFolder(Path(_filesystem(url)[1]))
    _filesystem(url)
    return RemoteFolder(url.rstrip("/"), cache or default_cache(), limit_bytes)


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/ziya/datasets`, as for every program that keeps to the rules."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ziya" / "datasets"


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        filesystem, root = fsspec.core.url_to_fs(url, **(_HTTP if url.startswith(("http://", "https://")) else {}))
    except (ImportError, ValueError) as error:
        raise BadData(f"{url} cannot be opened: {error}") from error
    return filesystem, str(root)


def _download(filesystem: Any, source: str, part: Path, file: File) -> None:
    filesystem.get_file(source, str(part))
    with part.open("rb") as content:
        size, sha256 = os.fstat(content.fileno()).st_size, hashlib.file_digest(content, "sha256").hexdigest()
    if size != file.bytes:
        raise BadData(f"{source} is damaged: it has {size} bytes, the index says {file.bytes}")
    if sha256 != file.sha256:
        raise BadData(f"{source} is damaged: its SHA-256 is not the index's")


def _open_cached(path: Path, size: int) -> int | None:
    """None when the file is not there, or was cut by a full disk. Its time stamp becomes that of its last use."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if os.fstat(handle).st_size != size:
        os.close(handle)
        return None
    os.utime(handle)
    return handle


@contextmanager
def _sole_writer(part: Path) -> Iterator[Path | None]:
    """Locks a file that is being fetched; yields None when another process has finished with it meanwhile."""
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not _is_still(part, file.fileno()):
            yield None
            return
        try:
            yield part
        finally:
            # Whoever waits for the lock finds another file under the name, or none, and begins anew.
            if _is_still(part, file.fileno()):
                part.unlink()


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _make_room(cache: Path, limit_bytes: int, keep: Path) -> None:
    """Removes what was used longest ago, and nothing that is not the cache's own."""
    found = [(*_age_and_size(path), path) for path in cache.iterdir() if _CACHED.fullmatch(path.name)]
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if path.suffix == _PART:
            _remove_if_abandoned(path)
        elif total > limit_bytes and path != keep:
            path.unlink(missing_ok=True)
            total -= size


def _age_and_size(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:  # another process has just removed it
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _remove_if_abandoned(part: Path) -> None:
    """A file that a killed process left half fetched bears nobody's lock."""
    try:
        with part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(part, file.fileno()):
                part.unlink()
    except (FileNotFoundError, BlockingIOError):
        return
