"""Samples that could not be used: counted by kind, some of each named, and the run stopped when they are too many.

The kind of a reason is what stands before its first colon. A process names its own bad samples; those of other
processes come as a number, which is enough to decide, the same everywhere, whether to go on.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.errors import BadConfig, BadData

ELSEWHERE = "on other processes"
_OTHER = "other"
_MOST_KINDS = 50


class BadSamples:
    """`limit_share` is the recipe's `bad_share`. Up to `named` examples are kept of each kind of reason."""

    def __init__(self, limit_share: float, *, min_seen: int = 100, min_bad: int = 3, named: int = 20) -> None:
        self.limit_share, self.min_seen, self.min_bad, self.named = limit_share, min_seen, min_bad, named
        self.seen = self.bad = 0
        self.kinds: Counter[str] = Counter()
        self.examples: dict[str, dict[str, str]] = {}

    def add(self, seen: int, bad: Sequence[tuple[str, str]], total: int | None = None) -> None:
        """Counts `seen` samples and names the (key, reason) of the `bad` ones.

        `seen` and `total` are over all processes; `total` counts bad ones and defaults to the number of `bad`.
        """
        total = len(bad) if total is None else max(total, len(bad))
        self.seen, self.bad = self.seen + seen, self.bad + total
        for key, reason in bad:
            self._name(_printable(key), _printable(reason))
        if total > len(bad):
            self.kinds[ELSEWHERE] += total - len(bad)

    def _name(self, key: str, reason: str) -> None:
        kind = reason.split(":", 1)[0].strip() or _OTHER
        if kind not in self.kinds and len(self.kinds) >= _MOST_KINDS:
            kind = _OTHER
        self.kinds[kind] += 1
        named = self.examples.setdefault(kind, {})
        if key not in named and len(named) < self.named:
            named[key] = reason

    def check(self) -> None:
        """Raises BadData when the share is above the limit, and enough was seen to say so."""
        if self.seen < self.min_seen or self.bad < self.min_bad or self.bad <= self.limit_share * self.seen:
            return
        raise BadData(
            f"{self.bad} of {self.seen} samples cannot be used ({self.bad / self.seen:.2%}; the recipe allows "
            f"{self.limit_share:.2%}): {self.summary()}"
        )

    def summary(self) -> str:
        """The kinds, most frequent first, each with an example: `2 × missing image (a.jsonl:7: missing image: x)`."""
        return ", ".join(f"{number} × {kind}{self._example(kind)}" for kind, number in self.kinds.most_common())

    def _example(self, kind: str) -> str:
        return next((f" ({key}: {reason})" for key, reason in self.examples.get(kind, {}).items()), "")

    def state(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        examples = {kind: dict(named) for kind, named in self.examples.items()}
        return {"seen": self.seen, "bad": self.bad, "kinds": dict(self.kinds.most_common()), "examples": examples}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave. Raises BadConfig when it is something else."""
        try:
            self.seen, self.bad = int(state["seen"]), int(state["bad"])
            self.kinds = Counter({str(kind): int(number) for kind, number in state["kinds"].items()})
            self.examples = {str(kind): dict(named) for kind, named in state["examples"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadConfig(f"the checkpoint's count of bad samples cannot be read: {error!r}") from error

    def write(self, path: Path) -> None:
        """The report as a file: whole or not at all."""
        share = self.bad / self.seen if self.seen else 0.0
        report = {"share": round(share, 6), "allowed_share": self.limit_share, **self.state()}
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
        draft.replace(path)


def _printable(text: str) -> str:
    """Names of files and broken JSON may hold halves of surrogate pairs, at which a terminal or file would fail."""
    return text.encode(errors="backslashreplace").decode()
