"""Half-done retrieval on the disk: pictures' features, and the log-odds of pairs that were matched.

A folder belongs to one checkpoint, one list of items and one preprocessing, which its name is a digest of. Features are
written in the items' order, and their count after them; odds are appended as records of a pair and its value, and a
record that was cut off by a kill is dropped. When the ranking is known only `hits.npz` stays.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_PAIR = np.dtype([("pair", "<i8"), ("odds", "<f4")])


class MatchMemory:
    """See the module. As a context manager it is one process's at a time; others wait, and find the work done."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = folder / "lock"
        self._features, self._count = folder / "features.f32", folder / "features.count"
        self._odds, self._hits = folder / "odds.bin", folder / "hits.npz"
        self._known: tuple[Tensor, Tensor] | None = None

    def __enter__(self) -> Self:
        self._locked = self._lock.open("w")
        fcntl.flock(self._locked, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        self._locked.close()

    def features(self, images: int, shape: tuple[int, ...], encode: Callable[[int], Tensor], batch: int) -> Tensor:
        """[I, N, D] of all pictures; `encode(start)` gives those of the next `batch`, from where it was left."""
        done = int(self._count.read_text("ascii")) if self._count.is_file() else 0
        size = 4 * int(np.prod(shape))
        mode = "r+b" if self._features.is_file() else "w+b"
        with self._features.open(mode) as file:
            file.truncate(done * size)
            file.seek(done * size)
            for start in range(done, images, batch):
                made = encode(start).cpu().float().contiguous().numpy()
                file.write(made.tobytes())
                file.flush()
                os.fsync(file.fileno())
                _write(self._count, str(start + len(made)))
        # Mapped and not read: the features of thousands of pictures of a large ViT do not fit in memory.
        return torch.from_numpy(np.memmap(self._features, np.float32, "r+", shape=(images, *shape)))

    def known(self, pairs_P: Tensor) -> Tensor:
        """Float32 [P], NaN where a pair was not matched."""
        if self._known is None:
            self._known = self._read()
        pairs, odds = self._known
        found = torch.full((len(pairs_P),), float("nan"))
        if len(pairs):
            places = torch.searchsorted(pairs, pairs_P).clamp(max=len(pairs) - 1)
            there = pairs[places] == pairs_P
            found[there] = odds[places[there]]
        return found

    def keep(self, pairs_P: Tensor, odds_P: Tensor) -> None:
        records = np.empty(len(pairs_P), _PAIR)
        records["pair"], records["odds"] = pairs_P.numpy(), odds_P.numpy()
        with self._odds.open("ab") as file:
            file.write(records.tobytes())
            file.flush()

    def hits(self) -> dict[str, NDArray[np.float64]] | None:
        """What `finish` wrote; None before."""
        if not self._hits.is_file():
            return None
        with np.load(self._hits, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}

    def finish(self, hits: Mapping[str, NDArray[np.float64]]) -> None:
        """Keeps the hits and drops what they were made of."""
        draft = self._hits.with_suffix(f".{os.getpid()}.npz")
        np.savez(draft, **dict(hits))
        draft.replace(self._hits)
        for path in (self._features, self._count, self._odds):
            path.unlink(missing_ok=True)

    def _read(self) -> tuple[Tensor, Tensor]:
        data = self._odds.read_bytes() if self._odds.is_file() else b""
        whole = len(data) // _PAIR.itemsize * _PAIR.itemsize
        if whole < len(data):
            os.truncate(self._odds, whole)
        records = np.frombuffer(data[:whole], _PAIR)
        order = np.argsort(records["pair"], kind="stable")
        pairs = torch.from_numpy(records["pair"][order].astype(np.int64))
        return pairs, torch.from_numpy(records["odds"][order].astype(np.float32))


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(text, "ascii")
    draft.replace(path)
