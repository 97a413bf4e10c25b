"""A step's arrays where a GPU's kernels read them: one buffer of 32-bit integers, filled by one copy.

The buffer has a fixed address and fixed sizes, so a captured graph can read it again and again; a step with fewer
sequences than it has room for is filled up with sequences of one row, whose only position lies in a block that is
nobody's. Legend: T rows, B sequences, N blocks of a table.
"""

from __future__ import annotations

import numpy as np
import torch

from services.llama.engine.batch import Batch
from services.llama.engine.blocks import BLOCK

ALIGNED = 4  # 16 bytes: Triton compiles a kernel anew for pointers that are less aligned than those it has seen


class DeviceBatch:
    """Room for `rows` of `sequences`, none of which has more than `most_rows`, and tables of `blocks`.

    `positions_T` and `lengths_B` are the Batch's; `places_T` says where a row's keys and values go: block * BLOCK +
    the place in the block.
    """

    def __init__(self, rows: int, sequences: int, blocks: int, most_rows: int, device: torch.device) -> None:
        self.sequences, self.most_rows = sequences, most_rows
        sizes = rows, rows, sequences + 1, sequences, sequences * blocks
        self._at = np.cumsum([0, *(-(-size // ALIGNED) * ALIGNED for size in sizes)])
        self._host = np.zeros(int(self._at[-1]), np.int32)
        self._device = torch.zeros(len(self._host), dtype=torch.int32, device=device)
        ranges = [slice(int(start), int(start) + size) for start, size in zip(self._at, sizes, strict=False)]
        self._positions_T, self._places_T, self._starts_B1, self._lengths_B = (self._host[part] for part in ranges[:4])
        self._tables_BN = self._host[ranges[4]].reshape(sequences, blocks)
        self.positions_T, self.places_T, self.starts_B1, self.lengths_B = (self._device[part] for part in ranges[:4])
        self.tables_BN = self._device[ranges[4]].view(sequences, blocks)

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> DeviceBatch:
        """Room for just this step, filled."""
        most_rows = int(np.diff(batch.starts_B1).max())
        room = cls(len(batch.positions_T), batch.sequences, batch.tables_BN.shape[1], most_rows, device)
        room.fill(batch)
        return room

    def fill(self, batch: Batch, spare: int = 0) -> None:
        """Takes the step over. Rooms beyond its sequences get one row each, at position 0 of the block `spare`."""
        rows, sequences = len(batch.positions_T), batch.sequences
        blocks = np.repeat(batch.tables_BN, np.diff(batch.starts_B1), axis=0)
        blocks = blocks[np.arange(rows), batch.positions_T // BLOCK]
        self._positions_T[:rows], self._positions_T[rows:] = batch.positions_T, 0
        self._places_T[:rows], self._places_T[rows:] = blocks * BLOCK + batch.positions_T % BLOCK, spare * BLOCK
        self._starts_B1[: sequences + 1] = batch.starts_B1
        self._starts_B1[sequences + 1 :] = np.arange(rows + 1, rows + 1 + self.sequences - sequences)
        self._lengths_B[:sequences], self._lengths_B[sequences:] = batch.lengths_B, 1
        self._tables_BN[:sequences, : batch.tables_BN.shape[1]] = batch.tables_BN
        self._tables_BN[sequences:, 0] = spare
        # From pageable memory: the copy has been read when this returns, so the next step may write here again.
        self._device.copy_(torch.from_numpy(self._host))
