"""A web server with pictures, for requests that name one by its URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.local_http import Quiet, serving


@contextmanager
def hosting(*pictures: bytes) -> Iterator[str]:
    """Serves them at /0, /1 and so on, the first at the address itself, too. The address."""

    class Handler(Quiet):
        def do_GET(self) -> None:
            self.answer(200, pictures[int(self.path.strip("/") or "0")])

    with serving(Handler) as port:
        yield f"http://127.0.0.1:{port}"
