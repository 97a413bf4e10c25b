"""A service level objective: limits that one request must keep, all of them, to count as good."""

from __future__ import annotations

from dataclasses import dataclass

from cli.load.request import Answer
from cli.seconds import seconds
from cli.text import CommandError

LIMITS = ("ttft", "itl", "tpot", "e2e")


@dataclass(frozen=True)
class Objective:
    """The most seconds of each limit that was given. `itl` is held against the mean gap of a request."""

    limits: dict[str, float]

    @classmethod
    def parse(cls, text: str) -> Objective:
        """From `ttft=500ms,itl=50ms`. Raises CommandError."""
        limits = {}
        for part in text.split(","):
            name, _, time = part.partition("=")
            if name.strip() not in LIMITS:
                names = ", ".join(LIMITS)
                raise CommandError(f"--slo is a list such as ttft=500ms,itl=50ms of {names}, not {text!r}", 2)
            limits[name.strip()] = seconds(time, f"--slo {name.strip()}")
        return cls(limits)

    def met(self, answer: Answer) -> bool:
        """Whether the request was answered within all limits. What it has none of (one token: no gap) is kept."""
        if not answer.succeeded:
            return False
        gaps = answer.gaps
        found = {
            "ttft": answer.ttft,
            "itl": sum(gaps) / len(gaps) if gaps else None,
            "tpot": answer.tpot,
            "e2e": answer.e2e,
        }
        return all((value := found[name]) is None or value <= most for name, most in self.limits.items())

    def __str__(self) -> str:
        return ", ".join(f"{name} {1000 * most:g} ms" for name, most in self.limits.items())
