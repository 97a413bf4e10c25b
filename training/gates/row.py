"""What a gate looks at: one row of the builder, before it is written or thrown away.

A row was *translated* (the source's lines in the other language, one for one) or *generated* (new lines in both
languages, which say the same; the source is then what the picture was described by). Either way two lines of the
same place are a *pair*, and most gates look at pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

Task = Literal["caption", "vqa", "dialogue", "description", "reasoning"]
LANGUAGES = ("en", "zh")


class Line(NamedTuple):
    """A text and what it is: "caption", "question", "answer", "user", "assistant", "context"."""

    role: str
    text: str


class Pair(NamedTuple):
    """The lines of one place in both languages. `source` is the language it was translated from; None if from none."""

    role: str
    en: str
    zh: str
    source: str | None


@dataclass(frozen=True)
class Row:
    """`language` is that of `source`; `made` gives the new lines by language. `image` reads the picture's file;
    `image_digest` is equal for equal pictures, and needed only to tell which rows show the same one.

    A translated row's `made` has one language, which is not `language`, and as many lines as `source`.
    """

    key: str
    task: Task
    language: str
    source: tuple[Line, ...]
    made: Mapping[str, tuple[Line, ...]]
    translated: bool = True
    image: Callable[[], bytes] | None = None
    image_digest: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def texts(self) -> Mapping[str, tuple[Line, ...]]:
        """The lines that the record will hold, by language."""
        return {self.language: self.source, **self.made} if self.translated else self.made

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """Lines of the same place in both languages. Places that have no partner are left out: see `Form`."""
        source = self.language if self.translated else None
        english, chinese = (self.texts.get(language, ()) for language in LANGUAGES)
        return tuple(Pair(en.role, en.text, zh.text, source) for en, zh in zip(english, chinese, strict=False))

    @cached_property
    def made_lines(self) -> tuple[tuple[str, Line], ...]:
        """(language, line) of all that the language model wrote."""
        return tuple((language, line) for language, lines in self.made.items() for line in lines)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the key and all texts: what samples are drawn by, so that they are the same in every run."""
        content = hashlib.sha256()
        for part in self._parts():
            content.update(len(part).to_bytes(8, "big") + part)
        return content.hexdigest()

    def share(self, salt: str) -> float:
        """A number in [0, 1), fixed by the row and `salt`: a row is in a sample of share s when its own is below s."""
        drawn = hashlib.blake2b(f"{salt}/{self.digest}".encode(), digest_size=8).digest()
        return int.from_bytes(drawn, "big") / 2**64

    def _parts(self) -> Iterator[bytes]:
        # Half of a surrogate pair, which JSON may bring in, must not stop a digest.
        yield self.key.encode(errors="surrogatepass")
        yield self.task.encode()
        for language, lines in (("", self.source), *sorted(self.made.items())):
            yield language.encode()
            for line in lines:
                yield line.role.encode(errors="surrogatepass")
                yield line.text.encode(errors="surrogatepass")
