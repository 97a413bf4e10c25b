"""One request as one trace through every process, by W3C's trace context and OpenTelemetry's spans.

What travels is a text, the `traceparent` of `ziya/telemetry.py`: as gRPC metadata, in the entries of the work stream,
in tensor envelopes and in Triton's requests. Each process makes its spans' parent of it. Without an endpoint, which
is the default, nothing of OpenTelemetry is imported and a span costs one comparison; what a caller sent is then passed
on as it came, for the logs of all stages.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ziya.settings import ProcessSettings, SettingsError
from ziya.telemetry import traceparent

if TYPE_CHECKING:
    from ziya.span_export import Exporting

Attributes = Mapping[str, str | int | float | bool]
_WELL_FORMED = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_SAMPLED = 1


class Kind(StrEnum):
    """What a span is to the one around it, as OpenTelemetry counts."""

    INTERNAL = "INTERNAL"
    SERVER = "SERVER"
    CLIENT = "CLIENT"
    PRODUCER = "PRODUCER"
    CONSUMER = "CONSUMER"


class Span:
    """Nothing, as while no spans are taken. As a context manager it is what its body's spans and calls belong to."""

    @property
    def traceparent(self) -> str:
        """What a callee is told: this span, or whatever the caller sent when there is none."""
        return traceparent.get()

    def set(self, attributes: Attributes) -> None:
        """Adds what came to be known since the beginning."""

    def fail(self, error: BaseException) -> None:
        """Names the class of an error, never its words: they may hold what a client sent."""

    def end(self) -> None:
        """Ends a span that is no context manager's; a second time is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


_NOTHING = Span()
_exporting: Exporting | None = None


def start(settings: ProcessSettings) -> None:
    """Begins to take spans where the settings name a collector. Raises SettingsError without the SDK."""
    global _exporting  # noqa: PLW0603 (one a process, like the logging that it belongs to)
    if not settings.otlp_endpoint or _exporting is not None:
        return
    for package in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        if not _is_there(package):
            raise SettingsError("ZIYA_OTLP_ENDPOINT needs OpenTelemetry: pip install 'ziya-visual[tracing]'")
    from ziya.span_export import Exporting  # noqa: PLC0415 (only who traces pays for the SDK)

    _exporting = Exporting(settings.program, settings.otlp_endpoint, settings.otlp_ratio)


def stop() -> None:
    """Sends what has ended, for two seconds at most, and takes no more spans."""
    global _exporting
    exporting, _exporting = _exporting, None
    if exporting is not None:
        exporting.close()


def accept(text: object) -> str:
    """A caller's `traceparent` if it is one, else ""."""
    return text if isinstance(text, str) and _WELL_FORMED.fullmatch(text) else ""


def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Kind = Kind.INTERNAL,
    since: float | None = None,
) -> Span:
    """A span of the one around. It begins now, or began when `time.perf_counter` showed `since`."""
    if _exporting is None:
        return _NOTHING
    return _exporting.begin(name, kind, attributes or {}, since)


def record(
    name: str,
    start: float,
    end: float,
    attributes: Attributes | None = None,
    *,
    parent: str | None = None,
    links: Sequence[str] = (),
) -> str:
    """A span that is over, with its times as `time.perf_counter` gives them; its traceparent, "" when none is taken.

    `parent` and `links` are traceparents; without a parent it is a span of the one around, and without any not taken.
    """
    if _exporting is None or not (around := traceparent.get() if parent is None else parent):
        return ""
    return _exporting.record(name, (start, end), around, attributes or {}, links)


def taken(texts: Sequence[str]) -> list[str]:
    """Those traceparents whose spans are taken; none while no spans are."""
    return [text for text in texts if text and int(text[-2:], 16) & _SAMPLED] if _exporting is not None else []


def reading(unix: float) -> float:
    """What `time.perf_counter` showed at a time in unix seconds."""
    return time.perf_counter() - (time.time() - unix)


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # a package around it is missing
        return False
