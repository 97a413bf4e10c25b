"""What became of the requests of one run, as one row of the table.

answered   complete, within its time
refused    told before any text, by our own error, that it may try again (429, 503, RESOURCE_EXHAUSTED, UNAVAILABLE)
told       an answer that had begun was broken off with an error event: fair only where the engine itself was killed
left       the client went away on purpose
failed     everything else: another error, a hang past the deadline, a stream that ends without a word
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from cli.load.request import Answer, Failed
from ziya.errors import BusUnavailable, Overloaded, Unavailable

POLITE_HTTP = ("http 429", "http 503")
POLITE_GRPC = ("grpc RESOURCE_EXHAUSTED", "grpc UNAVAILABLE")
OURS = tuple(f"{kind.__name__}: " for kind in (Overloaded, Unavailable, BusUnavailable))
# Slower than the slowest hundredth of undisturbed requests by so many seconds: disturbed.
NOTICEABLE = 0.5
# So long without a disturbed request, and it is over; a later one has another cause.
CALM_SECONDS = 4.0


@dataclass(frozen=True)
class Verdict:
    """A row. In seconds: the slowest answer over the usual one, and the longest disturbance after a break."""

    fault: str
    breaks: int
    requests: int
    counts: Counter[str]
    extra: float
    recovery: float
    examples: tuple[str, ...]

    @property
    def failed(self) -> int:
        return self.counts["failed"]


def outcome(answer: Answer, *, may_break_off: bool) -> str:
    """One of the words above; `may_break_off` where the engine itself is killed."""
    failure = answer.failure
    if failure is None:
        return "answered" if answer.ended is not None else "failed"
    if failure.kind == "left":
        return "left"
    if _polite(failure) and not answer.pieces:
        return "refused"
    in_stream = failure.kind == "error in stream" or failure.kind.endswith(" in stream")
    return "told" if in_stream and answer.pieces and may_break_off else "failed"


def judge(fault: str, answers: Sequence[Answer], broken: Sequence[float], *, may_break_off: bool) -> Verdict:
    """`broken` are the moments at which something was broken, by the clock of the answers."""
    words = {id(answer): outcome(answer, may_break_off=may_break_off) for answer in answers}
    first = min(broken, default=float("inf"))
    calm = [a.e2e for a in answers if a.e2e is not None and words[id(a)] == "answered" and (a.ended or 0) < first]
    usual = sorted(calm) or [0.0]
    limit = usual[int(0.99 * (len(usual) - 1))] + NOTICEABLE
    extras = [a.e2e - median(usual) for a in answers if words[id(a)] == "answered" and a.e2e is not None]
    hit = sorted(
        a.intended
        for a in answers
        if words[id(a)] != "left" and (words[id(a)] != "answered" or (a.e2e is not None and a.e2e > limit))
    )
    recovery = max((_disturbed(hit, begin) for begin in broken), default=0.0)
    bad = [a.failure for a in answers if a.failure and words[id(a)] == "failed"]
    examples = tuple(f"{failure.kind}: {failure}" for failure in bad[:3])
    counts, extra = Counter(words.values()), max(extras, default=0.0)
    return Verdict(fault, len(broken), len(answers), counts, extra, recovery, examples)


def _disturbed(hit: Sequence[float], begin: float) -> float:
    """Seconds from a break to the last disturbed request before a stretch without any."""
    last = begin
    for at in hit:
        if begin <= at <= last + CALM_SECONDS:
            last = at
    return last - begin


def _polite(failure: Failed) -> bool:
    return failure.kind in POLITE_HTTP or (failure.kind in POLITE_GRPC and str(failure).startswith(OURS))
