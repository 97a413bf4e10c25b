"""Ports that stay ours from the moment they are chosen until the stack stops.

Every port is bound here, and never listened on, before any program starts: a port that is taken is a clear
error at once, all programs can be told one another's addresses and start side by side, and a program that is
restarted finds its port free. On Linux a listener may share a port with a socket that is only bound, when
both have SO_REUSEADDR; every server that we start sets it.
"""

from __future__ import annotations

import errno
import socket

from cli.text import CommandError


class Ports:
    """The reservations of one stack; `close` gives them back."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self._held: list[socket.socket] = []

    def reserve(self, port: int, option: str) -> int:
        """This port, or any free one for 0. Raises CommandError naming the port and the option when it is taken."""
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind((self.host, port))
        except OSError as error:
            held.close()
            raise CommandError(_reason(error, self.host, port, option)) from error
        self._held.append(held)
        return int(held.getsockname()[1])

    def prefer(self, port: int) -> int:
        """This port, or any free one when it is taken or 0."""
        try:
            return self.reserve(port, "")
        except CommandError:
            return self.reserve(0, "")

    def close(self) -> None:
        for held in self._held:
            held.close()


def _reason(error: OSError, host: str, port: int, option: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken by another program; choose another with {option}, or {option} 0 for any"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than we have; choose one above 1023 with {option}"
    return f"cannot listen on {host}:{port}: {error.strerror}"
