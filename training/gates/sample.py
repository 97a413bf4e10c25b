"""A few rows of each verdict to look at: those whose digests are smallest.

That is a uniform random sample without a random number: whoever goes through the same rows, in whatever order and
parts, comes to the same one, and two samples join to the sample of both (bottom-k sampling).
"""

from __future__ import annotations

import base64
from bisect import insort
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from typing import Any

from training.gates.gate import Finding
from training.gates.row import Row
from ziya.errors import InvalidImage
from ziya.images import ImageLimits, decode

THUMBNAIL_PX = 120
_LONGEST = 600


class Samples:
    """At most `kept` entries a verdict, ordered by digest. An entry is plain JSON."""

    def __init__(self, kept: int = 12) -> None:
        self.kept = kept
        self._by_verdict: dict[str, list[tuple[str, dict[str, Any]]]] = {}

    def offer(self, verdict: str, row: Row, finding: Finding | None) -> None:
        """Takes the row if its digest is among the smallest; only then its picture is read."""
        self.offer_unread(verdict, row.digest, lambda: row, finding)

    def offer_unread(self, verdict: str, digest: str, row: Callable[[], Row], finding: Finding | None) -> None:
        """The same of a row that is itself read only then."""
        held = self._by_verdict.setdefault(verdict, [])
        if len(held) < self.kept or (held and digest < held[-1][0]):
            self._put(held, digest, _entry(row(), finding))

    def entries(self, verdict: str) -> list[dict[str, Any]]:
        return [entry for _, entry in self._by_verdict.get(verdict, ())]

    def verdicts(self) -> list[str]:
        return sorted(self._by_verdict)

    def merge(self, other: Samples) -> None:
        for verdict, theirs in other._by_verdict.items():
            for digest, entry in theirs:
                self._put(self._by_verdict.setdefault(verdict, []), digest, entry)

    def state(self) -> dict[str, Any]:
        return {verdict: [[digest, entry] for digest, entry in held] for verdict, held in self._sorted()}

    def restore(self, state: Mapping[str, Iterable[Any]]) -> None:
        self._by_verdict = {
            verdict: [(str(digest), dict(entry)) for digest, entry in held] for verdict, held in state.items()
        }

    def _put(self, held: list[tuple[str, dict[str, Any]]], digest: str, entry: dict[str, Any]) -> None:
        if all(digest != other for other, _ in held):
            insort(held, (digest, entry), key=lambda one: one[0])
            del held[self.kept :]

    def _sorted(self) -> list[tuple[str, list[tuple[str, dict[str, Any]]]]]:
        return sorted(self._by_verdict.items())


def _entry(row: Row, finding: Finding | None) -> dict[str, Any]:
    """What the page shows of a row: JSON that can be encoded as UTF-8, texts no longer than `_LONGEST`."""
    texts = {language: [[line.role, line.text] for line in lines] for language, lines in row.texts.items()}
    if not row.translated:
        texts = {"source": [[line.role, line.text] for line in row.source], **texts}
    entry: dict[str, Any] = {"key": _printable(row.key), "task": row.task, "texts": {}}
    for name, lines in texts.items():
        entry["texts"][name] = [[role, _printable(text)] for role, text in lines[:12]]
    if finding is not None:
        entry["kind"], entry["detail"] = finding.kind, _printable(finding.detail)
    if row.image is not None:
        entry["image"] = thumbnail(row.image())
    return entry


def thumbnail(file: bytes) -> str:
    """A small JPEG as a data: URL; an empty string when the file is no picture."""
    from PIL import Image  # noqa: PLC0415

    try:
        picture = Image.fromarray(decode(file, ImageLimits()))
    except InvalidImage:
        return ""
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    small = BytesIO()
    picture.save(small, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(small.getvalue()).decode()


def _printable(text: str) -> str:
    whole = text.encode(errors="backslashreplace").decode()
    return whole if len(whole) <= _LONGEST else whole[:_LONGEST] + "…"
