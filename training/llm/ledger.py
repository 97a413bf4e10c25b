"""Every call that was paid for, on the disk before its answer is handed on, and what is being asked right now.

A sqlite file in WAL mode, for any number of processes of one machine. A call is written once, under its question's
digest: whoever comes second gets what the first one wrote. The sums are kept beside the calls, in the same transaction.

A budget is one for all who share the file. What a question may cost at most is set aside before it is asked and freed
when its call is written. If its process is killed in between, the server may have been paid without our knowing: it
stays set aside until somebody asks that question again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from training.errors import BadData, BudgetSpent, TrainingError
from training.llm.call import Call

_TABLES = """
CREATE TABLE IF NOT EXISTS calls (
    digest BLOB PRIMARY KEY, text TEXT NOT NULL, finish TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, estimated INTEGER NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
    dollars REAL NOT NULL);
CREATE TABLE IF NOT EXISTS asking (digest BLOB PRIMARY KEY, dollars REAL NOT NULL);
CREATE TABLE IF NOT EXISTS sums (
    requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    estimated INTEGER NOT NULL, dollars REAL NOT NULL);
INSERT INTO sums SELECT 0, 0, 0, 0, 0.0 WHERE NOT EXISTS (SELECT * FROM sums);
"""
_CALL = "SELECT text, finish, prompt_tokens, completion_tokens, estimated, reason, detail FROM calls WHERE digest = ?"
_ASIDE = "(SELECT COALESCE(SUM(dollars), 0.0) FROM asking)"
_MANY = 500
# Sums of many small numbers differ in the last places.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Spent:
    """`estimated` of the requests came without a word about usage. `aside`: dollars that questions in flight may cost,
    and those whose process was killed."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    estimated: int
    dollars: float
    aside: float


class Ledger:
    """In the file `path`, made when it is not there. Close it, or use it as a context manager.

    Raises BadData for a file that is no ledger, TrainingError for one that cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=60.0, isolation_level=None)
        except (OSError, sqlite3.OperationalError) as error:
            raise BadData(f"{path}: cannot be opened: {error}") from error
        try:
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            with self._transaction():
                for statement in filter(str.strip, _TABLES.split(";")):
                    self._file.execute(statement)
        except sqlite3.DatabaseError as error:
            self._file.close()
            raise BadData(f"{path}: not a ledger that can be read: {error}") from error

    def get(self, digest: str) -> Call | None:
        """What was answered, if it was."""
        row = self._file.execute(_CALL, (bytes.fromhex(digest),)).fetchone()
        if row is None:
            return None
        text, finish, prompt, completion, estimated, reason, detail = row
        return Call(text, finish, prompt, completion, bool(estimated), reason, detail)

    def known(self, digests: Sequence[str]) -> set[str]:
        """Those that were answered, for well or ill."""
        found: set[str] = set()
        for start in range(0, len(digests), _MANY):
            some = [bytes.fromhex(digest) for digest in digests[start : start + _MANY]]
            marks = ",".join("?" * len(some))
            rows = self._file.execute(f"SELECT digest FROM calls WHERE digest IN ({marks})", some)
            found.update(digest.hex() for (digest,) in rows)
        return found

    def keep(self, digest: str, call: Call, dollars: float) -> Call:
        """Writes a call, once and for all. Returns what is kept: another process may have been quicker."""
        name = bytes.fromhex(digest)
        facts = (call.text, call.finish, call.prompt_tokens, call.completion_tokens, call.estimated)
        row = (name, *facts, call.reason, call.detail, dollars)
        with self._transaction():
            added = self._file.execute("INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row).rowcount
            if added:
                self._file.execute(
                    "UPDATE sums SET requests = requests + 1, prompt_tokens = prompt_tokens + ?,"
                    " completion_tokens = completion_tokens + ?, estimated = estimated + ?, dollars = dollars + ?",
                    (call.prompt_tokens, call.completion_tokens, call.estimated, dollars),
                )
            self._free(name)
        return call if added else self.get(digest) or call

    def set_aside(self, digest: str, dollars: float, budget: float) -> None:
        """Before a question is asked that may cost `dollars`. Raises BudgetSpent, with nothing changed."""
        name = bytes.fromhex(digest)
        with self._transaction():
            self._free(name)
            paid, aside = self._file.execute(f"SELECT dollars, {_ASIDE} FROM sums").fetchone()
            if paid + aside + dollars > budget * (1 + _ROUNDING):
                raise BudgetSpent(
                    f"{self.path}: of the budget of ${budget:.4f}, ${paid:.4f} is spent and ${aside:.4f} set aside for "
                    f"what is being asked; the next question may cost ${dollars:.4f}"
                )
            self._file.execute("INSERT INTO asking VALUES (?, ?)", (name, dollars))

    def free(self, digest: str) -> None:
        """The question was not answered, and nothing was paid."""
        with self._transaction():
            self._free(bytes.fromhex(digest))

    def forget(self, reason: str) -> int:
        """Failures of a kind, so that they are asked again; what they cost stays spent. Returns how many there were."""
        with self._transaction():
            return self._file.execute("DELETE FROM calls WHERE reason = ? AND reason <> ''", (reason,)).rowcount

    def spent(self) -> Spent:
        """By all processes, since the file was made."""
        return Spent(*self._file.execute(f"SELECT *, {_ASIDE} FROM sums").fetchone())

    def _free(self, name: bytes) -> None:
        self._file.execute("DELETE FROM asking WHERE digest = ?", (name,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._file.execute("BEGIN IMMEDIATE")
            yield
            self._file.execute("COMMIT")
        except sqlite3.OperationalError as error:  # a full disk, a file that is locked for a minute
            raise TrainingError(f"{self.path}: {error}") from error
        finally:
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
