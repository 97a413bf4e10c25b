"""A model of the leaderboard: one that is asked at a URL, or the answers that it once gave, in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from training.errors import BadConfig, BadData
from training.leaderboard.asked import LANGUAGES, identity, read_lines, texts
from training.llm.endpoint import Endpoint
from training.llm.question import Answer, Failure


@dataclass(frozen=True)
class Said:
    """An answer; `failed` says why there is none, as "kind: detail"."""

    text: str
    failed: str = ""

    @classmethod
    def of(cls, known: Answer | Failure) -> Said:
        """What is too long counts as far as it goes, and a refusal is an answer, if not one that a judge will like."""
        if isinstance(known, Answer):
            return cls(known.text)
        if known.reason == "truncated":
            return cls(known.text)
        return cls(known.detail) if known.reason == "refused" else cls("", str(known))


@dataclass(frozen=True)
class Contestant:
    """`endpoint` is asked; without one, `ready` holds the answers by a question's key."""

    name: str
    endpoint: Endpoint | None = None
    ready: Mapping[str, Said] = field(default_factory=dict)


def read_answers(name: str, path: Path) -> Contestant:
    """Lines of `id` (or `question_id`) and `answer` (or `text`), a text or {"en": …, "zh": …}. Raises BadData."""
    ready: dict[str, Said] = {}
    for where, line in read_lines(path):
        key, said = identity(where, line), texts(where, line, "answer", "text")
        for language, text in said.items():
            whole = f"{key}/{language}" if language in LANGUAGES else key
            if whole in ready:
                raise BadData(f"{where}: there is an answer to {whole} already")
            ready[whole] = Said(text) if text.strip() else Said("", "empty: the file has no text")
    if not ready:
        raise BadData(f"{path}: no answers")
    return Contestant(name, ready=ready)


def check_names(contestants: list[Contestant]) -> None:
    """Raises BadConfig unless there are two, of different names."""
    names = [one.name for one in contestants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadConfig(f"two models are called {twice[0]}: name them as NAME=…")
    if len(names) < 2:
        raise BadConfig("a leaderboard compares at least two models")
