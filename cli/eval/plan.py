"""What an evaluation is to do, as it was typed, and what of it can be told wrong before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cli.text import CommandError
from training.scoring.layouts import LAYOUTS, Source
from training.scoring.tasks import TASKS, Asking, Task

LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Plan:
    """The options of `ziya eval`. Raises CommandError for what cannot be."""

    target: str
    tasks: tuple[str, ...]
    data: tuple[str, ...]
    store: Path
    prompts: Mapping[str, str] = field(default_factory=dict)
    languages: tuple[str, ...] = LANGUAGES
    layout: str | None = None
    images: Path | None = None
    annotations: Path | None = None
    split: str | None = None
    field: str | None = None
    templates: str | None = None
    limit: int | None = None
    max_tokens: int = 64
    top_k: int = 128
    model: str | None = None
    concurrency: int = 16
    device: str | None = None
    threads: int | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        for name in self.tasks:
            if name not in TASKS:
                raise CommandError(f"there is no task {name!r}, only {', '.join(TASKS)}", 2)
        if self.layout is not None and self.layout not in LAYOUTS:
            raise CommandError(f"there is no layout {self.layout!r}, only {', '.join(LAYOUTS)}", 2)
        if self.is_url and "retrieval" in self.tasks:
            raise CommandError(
                "retrieval needs the Q-Former's embeddings and matching, which no OpenAI-compatible server offers: "
                "give the checkpoint folder",
                2,
            )

    @property
    def is_url(self) -> bool:
        return self.target.startswith(("http://", "https://"))

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """Where items come from, in the order given."""
        return tuple(self._source(one) for one in self.data)

    def asking(self, name: str) -> tuple[Task, Asking]:
        task = TASKS[name]
        return task, Asking(task, self.field, self.templates, self.prompts)

    def _source(self, given: str) -> Source:
        said, _, rest = given.partition("=")
        language, path = (said, rest) if said in LANGUAGES and rest else (None, given)
        if language is None and self.languages != LANGUAGES:
            language = self.languages[0]
        return Source(Path(path), language, self.layout, self.images, self.annotations, self.split)


def spoken(given: str) -> tuple[str, str]:
    """A language and its text, of `zh=这是什么？`. Raises CommandError."""
    language, mark, text = given.partition("=")
    if language not in LANGUAGES or not mark or not text.strip():
        raise CommandError(f"--prompt must be en=TEXT or zh=TEXT, not {given!r}", 2)
    return language, text
