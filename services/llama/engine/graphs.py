"""CUDA graphs of steps that only decode: a step's hundreds of launches become one, which a small batch waits for else.

A graph is captured for some numbers of sequences, and a step takes the next larger one, filled up. Its inputs, its
result and the cache have fixed addresses. How a step becomes a graph is a function, so that the same code runs
where there is no GPU: `eager` keeps the step as it is. Legend: B sequences, one row each, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from services.llama.engine.batch import Batch
from services.llama.engine.device_batch import DeviceBatch

Step = Callable[[Tensor, DeviceBatch], Tensor]
Work = Callable[[], None]
Capture = Callable[[Work], Work]

SMALL, STRIDE, LARGEST = (1, 2, 4), 8, 256  # above the largest, the products take longer than their launches


def sizes(most: int) -> tuple[int, ...]:
    """1, 2, 4, then multiples of 8, until `most` sequences fit in, or LARGEST are reached."""
    found = [*SMALL, *range(STRIDE, LARGEST + 1, STRIDE)]
    return tuple(size for number, size in enumerate(found) if number == 0 or found[number - 1] < most)


def eager(work: Work) -> Work:
    """No graph: runs the work itself."""
    return work


class CudaCapture:
    """Captures work on the current device; all graphs share a memory pool.

    That is safe as no two run at once, and as what a graph leaves in the pool is never read after it: results must be
    copied out by the work. Not run yet: there was no GPU.
    """

    WARM = 2  # times before the capture: kernels are compiled and loaded, workspaces taken

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(self.WARM):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            work()
        replay: Work = graph.replay
        return replay


class DecodeGraphs:
    """For steps of at most `most` sequences of at most `blocks` blocks; `spare` is a block that is nobody's.

    `hidden_BD` gives the form of a step's input, on its device. `step` may do nothing but start kernels that depend on
    what is in its arguments: neither wait for the device nor decide by numbers on it.
    """

    def __init__(self, step: Step, capture: Capture, hidden_BD: Tensor, *, most: int, blocks: int, spare: int) -> None:
        self._spare = spare
        self._sizes = sizes(most)
        largest = self._sizes[-1]
        self._hidden_BD = hidden_BD.new_zeros(largest, hidden_BD.shape[1])
        self._result_BD = torch.zeros_like(self._hidden_BD)
        self._rooms = {size: DeviceBatch(size, size, blocks, 1, hidden_BD.device) for size in self._sizes}
        self._replays = dict[int, Work]()
        with torch.inference_mode():
            for size in reversed(self._sizes):  # the largest first: the others then fit into the memory that it took
                self._rooms[size].fill(_nobody(hidden_BD), spare)
                self._replays[size] = capture(partial(self._work, step, size))

    def takes(self, batch: Batch) -> bool:
        """Whether a graph can run the step: a row a sequence, no adapter, and not too many."""
        alone = len(batch.positions_T) == batch.sequences
        return alone and not batch.adapters and batch.sequences <= self._sizes[-1]

    def run(self, batch: Batch) -> Tensor:
        """The step's result [B, D]. The next call overwrites it."""
        size = next(size for size in self._sizes if size >= batch.sequences)
        self._hidden_BD[: batch.sequences].copy_(batch.hidden_TD)
        self._rooms[size].fill(batch, self._spare)
        self._replays[size]()
        return self._result_BD[: batch.sequences]

    def _work(self, step: Step, size: int) -> None:
        self._result_BD[:size].copy_(step(self._hidden_BD[:size], self._rooms[size]))


def _nobody(hidden_BD: Tensor) -> Batch:
    """A step without sequences: all of its rooms are filled up."""
    none = np.zeros(0, np.int32)
    return Batch(hidden_BD[:0], np.zeros(1, np.int32), none, np.zeros((0, 1), np.int32))
