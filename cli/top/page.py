"""One /metrics page as numbers, and what changed between two pages of one process."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

PREFIX = "ziya_"
STAGES = ("gateway", "vision", "qformer", "llama")
Labels = frozenset[tuple[str, str]]
Samples = Mapping[tuple[str, Labels], float]


@dataclass(frozen=True)
class Page:
    """Our samples of one page, by name and labels."""

    samples: Samples

    @classmethod
    def parse(cls, text: str) -> Page:
        """Raises ValueError for what is no metrics page."""
        found = {
            (sample.name, frozenset(sample.labels.items())): float(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith(PREFIX)
        }
        return cls(found)

    @property
    def stage(self) -> str:
        """Whose page it is; "" when it is none of ours."""
        names = {name for name, _ in self.samples}
        return next((stage for stage in STAGES if any(n.startswith(f"{PREFIX}{stage}_") for n in names)), "")

    def since(self, before: Page) -> Samples:
        """How much each sample grew; one that fell began again at zero, with its process."""
        then = before.samples
        return {
            key: value - then.get(key, 0.0) if value >= then.get(key, 0.0) else value
            for key, value in self.samples.items()
        }


def total(samples: Iterable[Samples], name: str, /, **labels: str) -> float:
    """The sum of a name's samples with these labels, over several pages."""
    wanted = set(labels.items())
    return sum(v for page in samples for (n, own), v in page.items() if n == name and wanted <= own)


def quantile(samples: Iterable[Samples], name: str, q: float, /, **labels: str) -> float | None:
    """A quantile of a histogram by its buckets, as Prometheus reckons it; None when nothing was observed.

    Within a bucket values are taken to lie evenly; above the last bound, at it.
    """
    below: dict[float, float] = {}
    wanted = set(labels.items())
    for page in samples:
        for (one, own), value in page.items():
            if one == f"{name}_bucket" and wanted <= own:
                bound = float(dict(own)["le"])
                below[bound] = below.get(bound, 0.0) + value
    rank, low, before = q * below.get(math.inf, 0.0), 0.0, 0.0
    if not rank:
        return None
    for bound in sorted(below):
        if below[bound] >= rank:
            inside = below[bound] - before
            return low if math.isinf(bound) else low + (bound - low) * (rank - before) / inside
        low, before = bound, below[bound]
    return low
