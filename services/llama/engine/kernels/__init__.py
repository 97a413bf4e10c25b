"""The C++ forward pass as Python sees it: a library for each set of instructions, loaded where a processor has them."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int, c_int32, c_void_p
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
INSTRUCTIONS = ("avx512", "avx2")  # the best first

FLOAT32, BFLOAT16, INT8, INT4 = range(4)
QKV, OUT, GATE_UP, DOWN = range(4)


class Shape(ctypes.Structure):
    """`Shape` of llama.h."""

    _fields_ = [
        *((name, c_int32) for name in ("kind", "layers", "hidden", "heads", "kv_heads", "width")),
        *((name, c_int32) for name in ("intermediate", "vocab", "context", "threads")),
        ("epsilon", c_float),
        ("cosines", c_void_p),
        ("sines", c_void_p),
    ]


class AdapterRows(ctypes.Structure):
    """`AdapterRows` of llama.h."""

    _fields_ = [("adapter", c_void_p), ("start", c_int32), ("stop", c_int32)]


class Step(ctypes.Structure):
    """`Step` of llama.h."""

    _fields_ = [
        ("rows", c_int32),
        ("sequences", c_int32),
        *((name, c_void_p) for name in ("starts", "lengths", "tables", "wanted")),
        ("table_width", c_int32),
        ("blocks", c_int32),
        *((name, c_void_p) for name in ("hidden", "keys", "values")),
        ("adapters", POINTER(AdapterRows)),
        ("adapter_ranges", c_int32),
    ]


_ARGUMENTS = {
    "ziya_vector": (c_void_p, c_int, c_int, c_void_p),
    "ziya_matrix": (c_void_p, c_int, c_int, c_int, c_void_p, c_int),
    "ziya_adapt": (c_void_p, c_void_p, c_int, c_int, c_int, c_int, c_void_p, c_void_p),
    "ziya_forward": (c_void_p, POINTER(Step)),
    "ziya_logits": (c_void_p, c_void_p, c_int, c_void_p),
}


def path(instructions: str) -> Path:
    """Where the library for these instructions is, once it is built."""
    return FOLDER / f"libziya_llama_{instructions}.so"


@cache
def libraries() -> dict[str, ctypes.CDLL]:
    """By their instructions, the best first: those that were built and that this processor can run."""
    built = {name: path(name) for name in INSTRUCTIONS if path(name).is_file()}
    loaded = {name: load(file) for name, file in built.items()}
    return {name: library for name, library in loaded.items() if library is not None}


def library() -> ctypes.CDLL | None:
    """The best one; None where the engine has to run on torch."""
    return next(iter(libraries().values()), None)


def load(file: Path) -> ctypes.CDLL | None:
    """None where the processor lacks an instruction that it is made of."""
    loaded = ctypes.CDLL(str(file))
    if not loaded.ziya_supported():
        return None
    for name, arguments in _ARGUMENTS.items():
        getattr(loaded, name).argtypes = arguments
    loaded.ziya_new.argtypes, loaded.ziya_new.restype = (POINTER(Shape),), c_void_p
    loaded.ziya_adapter.argtypes, loaded.ziya_adapter.restype = (), c_void_p
    loaded.ziya_free.argtypes, loaded.ziya_free.restype = (c_void_p,), None
    loaded.ziya_adapter_free.argtypes, loaded.ziya_adapter_free.restype = (c_void_p,), None
    return loaded
