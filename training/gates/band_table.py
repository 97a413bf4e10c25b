"""Which texts had this band: an open-addressed table in one array, 8 bytes an entry and at most three quarters full.

A Python dictionary of a million texts' bands would need over a gigabyte. An entry is the upper 32 bits of the band's
hash and the number of the text; that two bands have the same 32 bits is harmless, for every text found is compared.
A band that `MOST` texts have already says nothing, and takes no more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.gates.shingles import BANDS, Hashes

MOST = 32
_HALF = np.uint64(32)
_CHUNK = 1 << 16


class BandTable:
    """`room` is how many texts shall fit. Numbers of texts are below 2^32 - 1; a band of 0 is none."""

    def __init__(self, room: int = 1 << 12) -> None:
        self.count = 0
        self._slots: NDArray[np.uint64] = np.zeros(1 << (room * BANDS * 4 // 3).bit_length(), np.uint64)

    @property
    def full(self) -> bool:
        """Whether the bands of another text may not fit."""
        return 4 * (self.count + BANDS) > 3 * len(self._slots)

    def find(self, bands_B: Hashes) -> list[int]:
        """The numbers of texts that share a band, ascending."""
        found: set[int] = set()
        mask = len(self._slots) - 1
        for band in bands_B.tolist():
            tag, slot = band >> 32, band & mask
            while band and (entry := self._slots.item(slot)):
                if entry >> 32 == tag:
                    found.add((entry & 0xFFFFFFFF) - 1)
                slot = (slot + 1) & mask
        return sorted(found)

    def add(self, bands_B: Hashes, number: int) -> Hashes:
        """Returns the bands with 0 for those that took no more: `add_all` of these gives the same table."""
        mask = len(self._slots) - 1
        kept = bands_B.copy()
        for place, band in enumerate(bands_B.tolist()):
            tag, slot, same = band >> 32, band & mask, 0
            while entry := self._slots.item(slot):
                same += entry >> 32 == tag
                slot = (slot + 1) & mask
            if same >= MOST or not band:
                kept[place] = 0
            else:
                self._slots[slot] = tag << 32 | (number + 1)
                self.count += 1
        return kept

    def add_all(self, bands_NB: Hashes) -> None:
        """The bands, as `add` returned them, of texts 0, 1 …; the table must be empty."""
        for start in range(0, len(bands_NB), _CHUNK):
            chunk = np.asarray(bands_NB[start : start + _CHUNK])
            numbers = np.arange(start + 1, start + 1 + len(chunk), dtype=np.uint64).repeat(BANDS)
            bands = chunk.reshape(-1)
            self._put(bands[bands != 0], numbers[bands != 0])

    def _put(self, bands: Hashes, numbers: Hashes) -> None:
        """A step for all entries at once: into the slot if it is free, else on to the next."""
        entries = (bands >> _HALF << _HALF) | numbers
        slots = (bands & np.uint64(len(self._slots) - 1)).astype(np.int64)
        self.count += len(entries)
        while len(entries):
            free = self._slots[slots] == 0
            # Of several that want one free slot the first gets it; the others find it taken in the next step.
            wanted = np.where(free, slots, -1 - np.arange(len(slots)))
            first = np.unique(wanted, return_index=True)[1]
            winners = first[free[first]]
            self._slots[slots[winners]] = entries[winners]
            left = np.ones(len(entries), np.bool_)
            left[winners] = False
            entries, slots = entries[left], (slots[left] + ~free[left]) & (len(self._slots) - 1)
