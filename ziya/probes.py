"""Answers to a kubelet's probes over plain HTTP, beside the metrics: a kubelet has no certificate for gRPC over TLS.

`/healthz`: the event loop turns, which depends on nobody else. `/readyz`: the service takes calls. Everything else is
the application behind. The exporter's threads answer, so that a loop which is stuck gets a "no" and not silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, TimeoutError
from typing import Any

TURN_SECONDS = 4.0
Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Probes:
    """Make it in the event loop that is to be watched. `ready` is asked in another thread."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._loop, self._ready = asyncio.get_running_loop(), ready

    def before(self, application: Wsgi) -> Wsgi:
        """The application with the two paths in front."""

        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            checks = {"/healthz": self._turns, "/readyz": self._ready}
            check = checks.get(environ.get("PATH_INFO", ""))
            if check is None:
                return application(environ, start_response)
            good = check()
            start_response("200 OK" if good else "503 Service Unavailable", [("Content-Type", "text/plain")])
            return [b"ok\n" if good else b"no\n"]

        return answer

    def _turns(self) -> bool:
        turn = asyncio.sleep(0)
        try:
            asyncio.run_coroutine_threadsafe(turn, self._loop).result(TURN_SECONDS)
        except (TimeoutError, CancelledError):
            return False
        except RuntimeError:  # the loop is closed
            turn.close()
            return False
        return True
