"""Answers that were given, on the disk the moment they are known: what is killed goes on where it was.

An answer's name is the digest of all that decides it: who answers, the question, the pictures' bytes, and how long
the answer may be. So one store serves any number of models and tasks, and nothing in it is ever out of date, but for a
server whose weights are changed under one URL and model name: that one has to be asked in a new round.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TABLES = (
    "CREATE TABLE IF NOT EXISTS answers (digest TEXT PRIMARY KEY, text TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS rounds (target TEXT PRIMARY KEY, number INTEGER NOT NULL)",
)
_MANY = 500
# Kinds of failures: of a picture, which no asking mends, and of the weather, which another try may.
BAD_PICTURE, UNAVAILABLE = "bad picture", "unavailable"


@dataclass(frozen=True)
class Said:
    """An answer; `failed` says why there is none, as "kind: detail"."""

    text: str
    failed: str = ""


class Store:
    """In the sqlite file `path`; several processes may write at once. Close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = sqlite3.connect(path, timeout=60.0, isolation_level=None)
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=NORMAL")
        for table in _TABLES:
            self._file.execute(table)

    def known(self, digests: Sequence[str]) -> dict[str, Said]:
        """Those that are there."""
        found: dict[str, Said] = {}
        for start in range(0, len(digests), _MANY):
            some = digests[start : start + _MANY]
            marks = ",".join("?" * len(some))
            rows = self._file.execute(f"SELECT digest, text FROM answers WHERE digest IN ({marks})", some)
            found |= {digest: Said(text) for digest, text in rows}
        return found

    def keep(self, answers: Iterable[tuple[str, Said]]) -> None:
        """All of them or none. Failed ones are not kept: who is asked knows best which are worth another try."""
        rows = [(digest, said.text) for digest, said in answers if not said.failed]
        self._file.execute("BEGIN IMMEDIATE")
        self._file.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)
        self._file.execute("COMMIT")

    def round(self, identity: Mapping[str, object], *, fresh: bool) -> int:
        """How often this target was asked anew; `fresh` begins the next round, in which nothing is known."""
        target = json.dumps(dict(identity), sort_keys=True)
        if fresh:
            statement = "INSERT INTO rounds VALUES (?, 1) ON CONFLICT (target) DO UPDATE SET number = number + 1"
            self._file.execute(statement, (target,))
        row = self._file.execute("SELECT number FROM rounds WHERE target = ?", (target,)).fetchone()
        return int(row[0]) if row else 0

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def digest_of(identity: Mapping[str, object], question: str, pictures: Sequence[str]) -> str:
    """The name of the answer that `identity` gives to a question about pictures, which are given by their digests."""
    text = json.dumps([dict(identity), question, list(pictures)], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
