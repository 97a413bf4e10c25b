"""Which network addresses a server-side fetch may talk to, and the resolving that pins them.

A name is resolved once, every address it has is checked, and the connection is then made to a checked
address, never to the name: a second look-up could answer differently (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable

from ziya.errors import InvalidRequest

_GLOBAL_V6 = ipaddress.ip_network("2000::/3")


def is_public(text: str) -> bool:
    """True for an address of the public internet; false for private, loopback, link-local (cloud metadata),
    multicast and reserved ones, and for IPv6 forms that carry an IPv4 address (but a mapped public one)."""
    address = ipaddress.ip_address(text.split("%", 1)[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        if address not in _GLOBAL_V6 or address.sixtofour is not None or address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast


def any_address(text: str) -> bool:
    """For networks whose own hosts may be asked for images."""
    return True


async def resolve(host: str, port: int, allowed: Callable[[str], bool] = is_public) -> list[str]:
    """The addresses of `host`, all of them allowed. Raises InvalidRequest."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise InvalidRequest(f"the host {host!r} cannot be resolved") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not all(map(allowed, addresses)):
        raise InvalidRequest(f"the host {host!r} is not on the public internet; send the image as a data: URL")
    return addresses
