"""The shingles and bands of kept texts, in two files that only grow.

    texts.bin      a record a text: twice the row's number, plus 1 if it is the row's last text; where its shingles
                   end; its bands. All uint64, as this machine lays them out
    shingles.bin   all sets of shingles, one behind the other, uint32

What a killed process has not written whole is cut off when the files are opened. Memory: 16 bytes a text.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.gates.shingles import BANDS, Hashes

Text = tuple[NDArray[np.uint32], Hashes]
_FIELDS = 2 + BANDS


class Shelf:
    """Texts are numbered from 0 in the order of their rows."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._records = (folder / "texts.bin").open("a+b", buffering=0)
        self._shingles = (folder / "shingles.bin").open("a+b", buffering=0)
        self._marks, self._ends = array("Q"), array("Q")
        self._recover()

    @property
    def texts(self) -> int:
        return len(self._ends)

    @property
    def rows(self) -> int:
        return (self._marks[-1] >> 1) + 1 if self._marks else 0

    def row_of(self, text: int) -> int:
        return self._marks[text] >> 1

    def append(self, texts: Sequence[Text]) -> None:
        """The texts of the next row, at least one."""
        end = self._ends[-1] if self._ends else 0
        row, records = self.rows, np.zeros((len(texts), _FIELDS), np.uint64)
        for place, (shingles, bands) in enumerate(texts):
            end += len(shingles)
            mark = 2 * row + (place == len(texts) - 1)
            records[place, :2], records[place, 2:] = (mark, end), bands
            self._marks.append(mark)
            self._ends.append(end)
        self._shingles.write(b"".join(shingles.tobytes() for shingles, _ in texts))
        # Last, so that a record always has its shingles.
        self._records.write(records.tobytes())

    def shingles(self, text: int) -> NDArray[np.uint32]:
        start = self._ends[text - 1] if text else 0
        return np.frombuffer(os.pread(self._shingles.fileno(), 4 * (self._ends[text] - start), 4 * start), np.uint32)

    def bands(self) -> Hashes:
        """[texts, B], read from the disk where it is touched."""
        if not self._ends:
            return np.zeros((0, BANDS), np.uint64)
        records = np.memmap(self._records.name, np.uint64, "r", shape=(self.texts, _FIELDS))
        bands: Hashes = records[:, 2:]
        return bands

    def read(self) -> Iterator[list[Text]]:
        """The texts of each row, in order."""
        bands, texts = self.bands(), list[Text]()
        for number, mark in enumerate(self._marks):
            texts.append((self.shingles(number), np.array(bands[number])))
            if mark & 1:
                yield texts
                texts = []

    def flush(self) -> None:
        """Returns when all of it is on the disk."""
        for file in (self._shingles, self._records):
            os.fsync(file.fileno())

    def truncate(self, rows: int) -> None:
        """Forgets all but the first rows."""
        texts = bisect_left(self._marks, 2 * rows)
        del self._marks[texts:], self._ends[texts:]
        self._records.truncate(texts * _FIELDS * 8)
        self._shingles.truncate(4 * (self._ends[-1] if self._ends else 0))

    def close(self) -> None:
        self._records.close()
        self._shingles.close()

    def _recover(self) -> None:
        whole = os.fstat(self._records.fileno()).st_size // (8 * _FIELDS)
        if whole:
            records = np.memmap(self._records.name, np.uint64, "r", shape=(whole, _FIELDS))
            room = os.fstat(self._shingles.fileno()).st_size // 4
            good = np.flatnonzero((records[:, 0] & np.uint64(1) == 1) & (records[:, 1] <= room))
            texts = int(good[-1]) + 1 if len(good) else 0
            self._marks = array("Q", records[:texts, 0].tobytes())
            self._ends = array("Q", records[:texts, 1].tobytes())
        self.truncate(self.rows)
