"""Times as a person types them: 2s, 800ms, 5m."""

from __future__ import annotations

import math

from cli.text import CommandError

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str, name: str) -> float:
    """The time in seconds, above 0; `name` is the option it was given with. Raises CommandError."""
    unit = next((unit for unit in UNITS if text.strip().endswith(unit)), "")
    try:
        found = float(text.strip().removesuffix(unit)) * UNITS[unit]
    except (KeyError, ValueError):
        found = 0.0
    if not (0 < found < math.inf):
        raise CommandError(f"{name} is a time such as 2s or 800ms, not {text!r}", 2)
    return found
