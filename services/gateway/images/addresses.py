"""Which network addresses a server-side fetch may talk to, and the resolving that pins them.

A name is resolved once, every address it has is checked, and the connection is then made to a checked
address, never to the name: a second look-up could answer differently (DNS rebinding). Names are looked up
in threads of their own, since somebody's name server may take its time, and other work needs threads, too.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

from ziya.errors import InvalidRequest

# As `socket.getaddrinfo` does it, with a host, a port and the type of socket.
LookUp: TypeAlias = Callable[..., list[Any]]

_THREADS = 16
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
# Special by what stands behind them, which Python 3.11 does not know: protocol assignments with Oracle's metadata
# service, relays of 6to4, Azure's metadata service, and addresses for documents (RFC 9637).
_SPECIAL = [ipaddress.ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "3fff::/20")]
# Interface identifiers of ISATAP (RFC 5214), which carry an IPv4 address.
_ISATAP = (0x00005EFE, 0x02005EFE)


def is_public(text: str) -> bool:
    """True for an address of the public internet; false for private, loopback, link-local (cloud metadata),
    multicast and reserved ones, and for IPv6 forms that carry an IPv4 address (but a mapped public one)."""
    address = ipaddress.ip_address(text.split("%", 1)[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        if address not in _GLOBAL_V6 or address.sixtofour is not None or address.teredo is not None:
            return False
        if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
            return False
    if any(address.version == network.version and address in network for network in _SPECIAL):
        return False
    return address.is_global and not address.is_multicast


def any_address(text: str) -> bool:
    """For networks whose own hosts may be asked for images."""
    return True


class Resolver:
    """Looks up names; `allowed` judges every address."""

    def __init__(self, allowed: Callable[[str], bool] = is_public, look_up: LookUp = socket.getaddrinfo) -> None:
        self._allowed, self._look_up = allowed, look_up
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="resolve")

    async def resolve(self, host: str, port: int) -> list[str]:
        """The addresses of `host`, all of them allowed. Raises InvalidRequest."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(
                self._threads, lambda: self._look_up(host, port, type=socket.SOCK_STREAM)
            )
        except (OSError, UnicodeError):
            found = []
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not addresses or not all(map(self._allowed, addresses)):
            # One sentence for both: who may not ask an inner name shall not learn either whether there is one.
            raise InvalidRequest(
                f"the host {host[:100]!r} is not found on the public internet; send the image as a data: URL"
            )
        return addresses

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
