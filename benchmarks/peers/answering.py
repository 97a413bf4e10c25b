"""A measured process's side of the talk: JSON lines, a question on standard input, its answer on standard output.

    <- {"first": 640, "requests": 8}
    -> {"seconds": 1.1, "first_tokens": [0.2, ...], "tokens": 512}

Libraries print what they like: standard output is put aside for the answers, and theirs goes to standard error.
This module and the engines' run in environments that hold nothing of this project, so they import nothing of it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Setting:
    """How an engine is to be loaded: from which folder of models, for how many requests at once at most.

    `options` are the engine's own, by name.
    """

    models: Path
    precision: str
    threads: int
    most: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps({**vars(self), "models": str(self.models)})

    @classmethod
    def parse(cls, text: str) -> Setting:
        raw = json.loads(text)
        return cls(**{**raw, "models": Path(raw["models"])})


@dataclass(frozen=True)
class Round:
    """Requests that were started together: wall seconds, seconds to the first token of each, new tokens of all."""

    seconds: float
    first_tokens: list[float]
    tokens: int


class Engine(Protocol):
    """What is measured; lives in the process that `answer` was called in."""

    def round(self, requests: range) -> Any:
        """Serves the requests of these numbers, all at once. Returns a dataclass."""

    def close(self) -> None: ...


def answer(load: Callable[[Setting], Engine]) -> None:
    """Loads what the first argument asks for, says that it is ready, and answers until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    engine = load(Setting.parse(sys.argv[1]))
    try:
        print(json.dumps({"ready": os.getpid()}), file=answers)
        for line in sys.stdin:
            question = json.loads(line)
            requests = range(question["first"], question["first"] + question["requests"])
            print(json.dumps(asdict(engine.round(requests))), file=answers)
    finally:
        engine.close()  # some engines have threads that would keep the process
