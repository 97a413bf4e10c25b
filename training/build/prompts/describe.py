"""A picture in words, for a language model that cannot see it: its captions, what stands where, what is written.

Coordinates are fractions of width and height, from the top left corner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_MOST_BOXES = 40
_MOST_TEXT = 2000


def description(fields: Mapping[str, Any], language: str) -> str:
    """Empty when the record says nothing that a picture could be described by."""
    parts = {
        "Captions": list(_captions(fields.get("caption"), language)),
        "Objects (left, top, right, bottom)": list(_boxes(fields.get("boxes"))),
        "Text in the picture": list(_captions(fields.get("ocr"), language)),
    }
    lines = [f"{name}:\n" + "\n".join(f"- {line}" for line in lines) for name, lines in parts.items() if lines]
    return "\n".join(lines)


def _captions(value: Any, language: str) -> Iterator[str]:
    for one in value if isinstance(value, list) else [value]:
        text = one.get(language) or next(iter(one.values()), "") if isinstance(one, Mapping) else one
        if isinstance(text, str) and text.strip():
            yield text.strip()[:_MOST_TEXT]


def _boxes(value: Any) -> Iterator[str]:
    """`{"label": …, "box": [x0, y0, x1, y1]}` each; what is none is left out, for it describes nothing."""
    for one in (value if isinstance(value, list) else [])[:_MOST_BOXES]:
        if isinstance(one, Mapping) and isinstance(one.get("label"), str) and isinstance(one.get("box"), list):
            yield f"{one['label']}: " + ", ".join(str(number) for number in one["box"][:4])
