"""Strategies that several targets share."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

# Numbers at the borders of what fields of files and messages can hold.
BORDERS = [0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]


@st.composite
def mutated(draw: DrawFn, good: bytes, limit: int = 4) -> bytes:
    """A good input with up to `limit` changes: bytes and numbers replaced, pieces cut, repeated or put in."""
    data = bytearray(good)
    for _ in range(draw(st.integers(0, limit))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.integers(0, 5)):
            case 0:
                data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                order, kind = draw(st.sampled_from("<>")), draw(st.sampled_from("HI"))
                number = draw(st.sampled_from(BORDERS)) & (0xFFFF if kind == "H" else 0xFFFFFFFF)
                value = struct.pack(f"{order}{kind}", number)
                data[place : place + len(value)] = value
            case 2:
                del data[place:]
            case 3:
                del data[place : place + draw(st.integers(1, 64))]
            case 4:
                piece = data[place : place + draw(st.integers(1, 64))]
                data[place:place] = piece * draw(st.sampled_from([1, 2, 300]))
            case _:
                data[place:place] = draw(st.binary(max_size=64))
    return bytes(data)


def json_values(leaves: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """Nested values of JSON."""
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4))


TEXTS = st.text(max_size=12) | st.sampled_from(
    ["", "\0", "\ufeff", "\u202e", "😀", "é", "x" * 3000, "__class__", "$ref"]
)
NUMBERS = (
    st.integers(-2, 3)
    | st.sampled_from([10**400, -(10**400), 1 << 63, (1 << 64) - 1, -(1 << 63) - 1, 1e308, -0.0, 5e-324])
    | st.floats(allow_nan=True, allow_infinity=True)
)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
