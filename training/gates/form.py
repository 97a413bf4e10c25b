"""Is the row what the trainer can read: complete, in turns, of characters that are text, not too long?

Nothing here looks at what is said. Lines of the two languages must be as many and of the same roles. Markers of a
prompt template in a text would teach the model to write them. A row that the trainer would refuse is rejected, one
that it would only cut short is a doubt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from training.gates.characters import damage
from training.gates.gate import Doubt, Finding, Reject
from training.gates.row import Line, Row
from training.gates.scripts import HAN
from training.recipe import Text

_MARKERS = re.compile(
    r"</?(?:human|bot|s|unk|pad|image|img|sys|eos|bos|vision|system|user|assistant)>|<image_?\d*>|\[/?INST\]"
    r"|<\|[^<>|]{1,30}\|>|^\s*#{1,4} ?(?:human|assistant|user|system|instruction|response)\b"
    r"|^\s*(?:human|user|assistant|gpt|system) ?[:：]|^\s*(?:用户|助手|人类|系统) ?[:：]",
    re.IGNORECASE | re.MULTILINE,
)
_ESTIMATED = re.compile(rf"[{HAN}]|[^\W_{HAN}]{{1,4}}|[^\w\s]|_")
_ROLES = {"vqa": ("question", "answer"), "dialogue": ("user", "assistant")}


def estimated_tokens(text: str) -> int:
    """A Han character, four other letters or a mark for one token: on the high side of what LLaMA's kin need."""
    return len(_ESTIMATED.findall(text))


@dataclass(frozen=True)
class Form:
    """`limits` are the trainer's, `tokens` counts a text's tokens; `visual` is how many an image needs."""

    limits: Text = field(default_factory=Text)
    tokens: Callable[[str], int] = estimated_tokens
    visual: int = 32
    name: str = field(default="form", init=False)

    def check(self, row: Row) -> Finding | None:
        if kind := _roles(row):
            return Reject(self.name, kind, " ".join(row.texts))
        for lines in row.texts.values():
            for line in lines:
                if kind := _broken(line):
                    return Reject(self.name, kind, line.text)
        return self._length(row)

    def _length(self, row: Row) -> Finding | None:
        doubt: Finding | None = None
        for lines in row.texts.values():
            counts = [self.tokens(line.text) for line in lines]
            total = sum(counts) + (self.visual if row.image else 0)
            if total > self.limits.row_positions and row.task != "caption":
                return Reject(self.name, "too long for a row", f"{total} of {self.limits.row_positions} positions")
            for line, count in zip(lines, counts, strict=True):
                if count > (most := self._most(line.role)):
                    doubt = doubt or Doubt(self.name, f"{line.role} will be cut", f"{count} of {most}: {line.text}")
        return doubt

    def _most(self, role: str) -> int:
        by_role = {"caption": self.limits.caption_tokens, "answer": self.limits.answer_tokens}
        by_role["assistant"] = self.limits.answer_tokens
        return by_role.get(role, self.limits.instruction_tokens)


def _roles(row: Row) -> str | None:
    """What is wrong with the lines' number and order."""
    said = [[line.role for line in lines] for lines in row.texts.values()]
    if not said or not all(said):
        return "nothing was made"
    if any(roles != said[0] for roles in said[1:]):
        return "lines differ between the languages"
    turns = _ROLES.get(row.task)
    if turns is not None and tuple(said[0]) != turns * (len(said[0]) // 2):
        return "turns do not alternate"
    return None


def _broken(line: Line) -> str | None:
    if not line.text.strip():
        return "empty"
    return damage(line.text) or ("markers of a prompt template" if _MARKERS.search(line.text) else None)


def made_tokens(row: Row, tokens: Callable[[str], int] = estimated_tokens) -> Iterator[int]:
    """Tokens of each made text, for the histogram."""
    lines: Sequence[tuple[str, Line]] = row.made_lines
    for _, line in lines:
        yield tokens(line.text)
