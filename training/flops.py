"""How much arithmetic a step is, and how much the device could do: MFU is the one divided by the other.

The products of matrices of the first micro-batch are counted by torch as they run, forward and backward, and later
steps are taken to need as many a unit (a position of text, or a picture). Counting slows a step down, does not see
into compiled code, and takes some operations apart, which rounds differently: so it is done in a run's first step
alone, where nothing runs compiled, and kept in its checkpoints. Products on padding, and those that checkpointed
activations repeat, are counted like all others.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

MEASURED_SECONDS, MEASURED_SIZE = 0.3, 1024
# Dense FLOP/s of bfloat16 products, from NVIDIA's data sheets; the first whose words are all in the device's name.
_BFLOAT16 = (
    (("H100", "PCIe"), 756e12),
    (("H100", "NVL"), 835e12),
    (("H100",), 989e12),
    (("H200",), 989e12),
    (("GH200",), 989e12),
    (("B200",), 2250e12),
    (("A100",), 312e12),
    (("L40S",), 362e12),
    (("A10",), 125e12),
    (("L4",), 121e12),
)


class FlopMeter:
    """Counts the first micro-batch, and knows from it what any number of units takes; 0 until then."""

    def __init__(self) -> None:
        self.a_unit: float | None = None

    @contextmanager
    def counting(self, units: int) -> Iterator[None]:
        """Around forward and backward of a micro-batch of so many units."""
        if self.a_unit is not None or units < 1:
            yield
            return
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            yield
        self.a_unit = counter.get_total_flops() / units

    def of(self, units: float) -> float:
        """Operations that so many units take, forward and backward."""
        return (self.a_unit or 0.0) * units


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """What one device can do at most, in FLOP/s: known of a GPU in bfloat16, measured on a CPU, else None."""
    if device.type == "cpu":
        return _measured(dtype)
    if device.type != "cuda" or dtype not in {torch.bfloat16, torch.float16}:
        return None
    return _listed(torch.cuda.get_device_name(device))


def _listed(name: str) -> float | None:
    words = set(re.split(r"[^A-Za-z0-9]+", name))
    # A slice of a device (MIG) has less than the data sheet says.
    if "MIG" in words:
        return None
    return next((peak for wanted, peak in _BFLOAT16 if words.issuperset(wanted)), None)


@lru_cache(maxsize=4)
def _measured(dtype: torch.dtype) -> float:
    """The fastest of the large products that a moment has room for; once a process and type."""
    left, right = (torch.ones(MEASURED_SIZE, MEASURED_SIZE, dtype=dtype) for _ in range(2))
    fastest, end = float("inf"), time.perf_counter() + MEASURED_SECONDS
    with torch.inference_mode():
        torch.mm(left, right)
        while (began := time.perf_counter()) < end:
            torch.mm(left, right)
            fastest = min(fastest, time.perf_counter() - began)
    return 2.0 * MEASURED_SIZE**3 / fastest
