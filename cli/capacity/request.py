"""One request on its way through the simulation: what it is, what it waited for, and how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from cli.capacity.arrivals import Arrival

Outcome = Literal["", "answered", "refused", "expired"]
STAGES = ("gateway", "vision", "qformer", "llama")


@dataclass(eq=False, slots=True)
class Request:
    """Times in seconds. `waits` is what it queued for in each stage; `outcome` is empty while it is under way."""

    arrival: Arrival
    prompt_tokens: int  # the image's among them
    deadline: float = math.inf
    waits: dict[str, float] = field(default_factory=dict)
    first_token: float = math.nan  # seconds from its arrival to its first text
    outcome: Outcome = ""
    refused_by: str = ""  # the stage whose bound was reached
