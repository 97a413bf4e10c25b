"""The last seconds of a stack: all looks at its pages that are not older than the window."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx

from cli.top.page import Page, Samples, quantile, total

TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True)
class Source:
    """One process's metrics page. `stage` is "" until it is known."""

    url: str
    stage: str = ""


@dataclass(frozen=True)
class Look:
    """All pages at one time, in monotonic seconds; None for one that did not come."""

    at: float
    pages: Mapping[Source, Page | None]


class Window:
    """Keeps looks of at most `seconds`, and reckons with the first and the last of them."""

    def __init__(self, sources: Sequence[Source], seconds: float) -> None:
        self._sources, self._seconds = sources, seconds
        self._looks: deque[Look] = deque()

    async def look(self, client: httpx.AsyncClient) -> None:
        """Asks every process for its page, side by side."""
        pages = await asyncio.gather(*(_fetch(client, source.url) for source in self._sources))
        self._looks.append(Look(time.monotonic(), dict(zip(self._sources, pages, strict=True))))
        while len(self._looks) > 2 and self._looks[-1].at - self._looks[1].at >= self._seconds:
            self._looks.popleft()

    def stage(self, name: str) -> Stage:
        """What is known of one stage's processes."""
        mine = [source for source in self._sources if self._stage_of(source) == name]
        now = self._looks[-1]
        pages = {source: page for source in mine if (page := now.pages[source]) is not None}
        changes: list[tuple[Samples, float]] = []
        for source, page in pages.items():
            before = next((look for look in self._looks if look.pages[source] is not None), now)
            then = before.pages[source]
            if then is not None and now.at > before.at:
                changes.append((page.since(then), now.at - before.at))
        return Stage(len(pages), len(mine), [page.samples for page in pages.values()], changes)

    @property
    def seconds(self) -> float:
        """From the first look that counts to the last one."""
        return self._looks[-1].at - self._looks[0].at

    def strangers(self) -> list[str]:
        """Addresses that have told nothing of ours so far."""
        return [source.url for source in self._sources if not self._stage_of(source)]

    def _stage_of(self, source: Source) -> str:
        seen = (page.stage for look in reversed(self._looks) if (page := look.pages[source]) is not None)
        return source.stage or next(seen, "")


@dataclass(frozen=True)
class Stage:
    """The processes of one stage: how many answer, their samples, and what changed in how many seconds."""

    up: int
    known: int
    now: Sequence[Samples]
    changes: Sequence[tuple[Samples, float]]

    def value(self, name: str, /, **labels: str) -> float:
        """A gauge, summed over the processes."""
        return total(self.now, name, **labels)

    def rate(self, name: str, /, **labels: str) -> float:
        """A counter's growth a second, summed over the processes."""
        return sum(total([change], name, **labels) / seconds for change, seconds in self.changes)

    def grown(self, name: str, /, **labels: str) -> float:
        """A counter's growth within the window."""
        return total([change for change, _ in self.changes], name, **labels)

    def quantile(self, name: str, q: float, /, **labels: str) -> float | None:
        """Of what a histogram observed within the window; None when nothing was."""
        return quantile([change for change, _ in self.changes], name, q, **labels)

    def mean(self, name: str) -> float | None:
        """Of what a histogram observed within the window."""
        return share(self.grown(f"{name}_sum"), self.grown(f"{name}_count"))


def share(part: float, whole: float) -> float | None:
    """None of nothing."""
    return part / whole if whole else None


async def _fetch(client: httpx.AsyncClient, url: str) -> Page | None:
    try:
        answer = await client.get(url, timeout=TIMEOUT_SECONDS)
        return Page.parse(answer.text) if answer.is_success else None
    except (httpx.HTTPError, ValueError):
        return None
