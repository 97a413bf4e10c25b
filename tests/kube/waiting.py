"""Waiting for what a cluster does in its own time: look, and look again, until it is so or it has taken too long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from kubernetes.client import ApiException

T = TypeVar("T")


def eventually(look: Callable[[], T], seconds: float = 20.0, pause: float = 0.03) -> T:
    """The first true answer. The last false one, or the last refusal, is in the failure."""
    end = time.monotonic() + seconds
    while True:
        last: object
        try:
            if answer := look():
                return answer
            last = answer
        except ApiException as error:
            last = f"{error.status} {error.body}"
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s; at last: {last}")
        time.sleep(pause)


def gone(read: Callable[[], object]) -> bool:
    """Whether reading it answers 404."""
    try:
        read()
    except ApiException as error:
        if error.status == 404:
            return True
        raise
    return False
