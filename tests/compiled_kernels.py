"""Compiles the kernels of the paged cache for an H100 or H200, with no GPU at hand: `python -m tests.compiled_kernels`.

Prints a line a variant: its name and the shared memory that it takes. Raises what the compiler raises, and
AssertionError where a variant takes more than such a GPU lends to one program.
"""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from services.llama.engine import paged_attention
from services.llama.engine.blocks import BLOCK

TARGET = GPUTarget("cuda", 90, 32)
MOST_SHARED = 227 << 10  # bytes; CUDA programming guide, technical specifications of compute capability 9.0
HEADS = {"HEADS": 40, "KV_HEADS": 40, "WIDTH": 128, "DIMS": 128, "BLOCK": BLOCK}  # LLaMA-13B
INTEGERS = ("positions", "places", "starts", "lengths", "tables")
FLOATS = ("sums", "tops", "totals")


def compiled(kernel: Any, dtype: str, constants: dict[str, int], **own: str) -> None:
    """`own` are the types of arguments that are neither integers' nor numbers' pointers."""
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        else:
            signature[name] = own.get(name, "*i32" if name in INTEGERS else f"*{dtype}")
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, name in enumerate(kernel.arg_names)
        if signature[name][0] == "*"
    }
    made = triton.compile(ASTSource(kernel, signature, constants, aligned), target=TARGET)
    shared = made.metadata.shared
    assert made.asm["cubin"]
    assert shared <= MOST_SHARED, f"{kernel.__name__} takes {shared} bytes of shared memory"
    sys.stdout.write(f"{kernel.__name__} {dtype} {constants}: {shared} bytes of shared memory\n")


def main() -> None:
    for dtype, span in (("bf16", 64), ("fp32", 32)):
        compiled(paged_attention.rotate_and_store, dtype, HEADS)
        scalars = {"scale": "fp32", "table_width": "i32"}
        tiles = paged_attention.DECODE_TILE, paged_attention.PREFILL_TILE
        for tile, parts in ((tiles[0], 1), (tiles[0], paged_attention.MOST_PARTS), (tiles[1], 1)):
            partial = dict.fromkeys(FLOATS, "*fp32") if parts > 1 else {}
            constants = {**HEADS, "TILE": tile, "SPAN": span, "PARTS": parts}
            compiled(paged_attention.attend, dtype, constants, **scalars, **partial)
        merge = {name: HEADS[name] for name in ("HEADS", "WIDTH", "DIMS")}
        compiled(
            paged_attention.merge,
            dtype,
            {**merge, "PARTS": paged_attention.MOST_PARTS},
            **dict.fromkeys(FLOATS, "*fp32"),
        )


if __name__ == "__main__":
    main()
