"""A web server with pictures, for requests that name one by its URL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def hosting(*pictures: bytes) -> Iterator[str]:
    """Serves them at /0, /1 and so on, the first at the address itself, too. The address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = pictures[int(self.path.strip("/") or "0")]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
