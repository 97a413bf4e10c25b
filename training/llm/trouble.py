"""What went wrong between us and a server: whether to ask again, when, and what to tell whoever set it up.

Wrong keys, models and URLs stop everything at once. A question that the server will not read fails alone. All else is
weather: 429, 408, 409, 425, 5xx, connections that break, answers that are not JSON, and silence.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import openai

from training.errors import BadConfig
from training.llm.endpoint import Endpoint

FIRST_WAIT, LONGEST_WAIT, LONGEST_RETRY_AFTER = 0.5, 30.0, 600.0
PASSING = frozenset({408, 409, 425, 429})
SHOWN = 300


@dataclass(frozen=True)
class Weather:
    """It may go better later. `after` is what the server asks for, in seconds.

    `busy`: it is there, and wants to be left alone. `paid`: it may have been, without our knowing.
    """

    sentence: str
    after: float | None = None
    busy: bool = False
    paid: bool = True


@dataclass(frozen=True)
class Refusal:
    """The server will not have this one question: `reason` is a failure's."""

    reason: str
    sentence: str


Trouble = Weather | Refusal


def diagnose(error: Exception, endpoint: Endpoint) -> Trouble:
    """Raises BadConfig for what no question can get past."""
    if isinstance(error, openai.APIStatusError):
        return _by_status(error, endpoint)
    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return Weather(f"no answer within {endpoint.timeout:g} s")
    cause = error.__cause__ or error
    # A connection that was never made carried no question.
    return Weather(f"{type(cause).__name__}: {cause}"[:SHOWN], paid="Connect" not in type(cause).__name__)


def backoff(attempt: int) -> float:
    """Seconds to wait after so many attempts: doubling, with jitter, so that askers do not all return at once."""
    return random.uniform(0.5, 1.0) * min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(attempt - 1, 16))


def _by_status(error: openai.APIStatusError, endpoint: Endpoint) -> Trouble:
    status, said = error.status_code, _said(error)
    where = f"{endpoint.base_url}, model {endpoint.model}"
    if status in {401, 403}:
        raise BadConfig(f"{where}: the server refuses the API key ({status}): {said}")
    if status == 404:
        raise BadConfig(f"{where}: no such model, or a URL without its /v1 (404): {said}")
    if status == 402 or error.code == "insufficient_quota":
        raise BadConfig(f"{where}: the account has no credit left ({status}): {said}")
    if status in PASSING or status >= 500:
        return Weather(f"HTTP {status}: {said}", _retry_after(error), busy=status in PASSING, paid=status >= 500)
    if error.code == "content_filter":
        return Refusal("filtered", said)
    return Refusal("bad request", f"HTTP {status}: {said}")


def _said(error: openai.APIStatusError) -> str:
    body: Any = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return str(message or error.response.text or error.message)[:SHOWN]


def _retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds, or a date; what cannot be read is as good as nothing."""
    text = error.response.headers.get("retry-after")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), LONGEST_RETRY_AFTER)
