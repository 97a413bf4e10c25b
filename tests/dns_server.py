"""A name server for one name (RFC 1035, over UDP), whose addresses change: what a headless Service is to gRPC."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

NAME = "stage.test"
A, IN = 1, 1
RESPONSE, NAME_ERROR = 0x8580, 3


class Names(asyncio.DatagramProtocol):
    """Answers A queries for NAME with `addresses`; other names do not exist, other types have no records."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.asked = 0
        self.port = 0
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        number = struct.unpack("!H", data[:2])[0]
        end = data.index(0, 12)
        labels, at = [], 12
        while at < end:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
        kind = struct.unpack("!H", data[end + 1 : end + 3])[0]
        known = ".".join(labels) == NAME
        found = self.addresses if known and kind == A else []
        self.asked += bool(found)
        head = struct.pack("!6H", number, RESPONSE | (0 if known else NAME_ERROR), 1, len(found), 0, 0)
        # The name of each record is a pointer to the question's, and nobody may remember it.
        records = (struct.pack("!3HIH", 0xC00C, A, IN, 0, 4) + socket.inet_aton(one) for one in found)
        assert self._transport is not None
        self._transport.sendto(head + data[12 : end + 5] + b"".join(records), address)


@asynccontextmanager
async def naming() -> AsyncIterator[Names]:
    """A running server on a free port of 127.0.0.1."""
    loop = asyncio.get_running_loop()
    transport, names = await loop.create_datagram_endpoint(Names, local_addr=("127.0.0.1", 0))
    try:
        yield names
    finally:
        transport.close()


def look_up(server: int, host: str, port: int) -> list[tuple[object, ...]]:
    """The A records that the server on that port has for a name, as `socket.getaddrinfo` gives addresses."""
    name = b"".join(bytes([len(label)]) + label.encode() for label in host.split("."))
    question = struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + name + struct.pack("!B2H", 0, A, IN)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(question, ("127.0.0.1", server))
        reply = client.recv(4096)
    (count,) = struct.unpack("!H", reply[6:8])
    records = reply[len(question) :]
    addresses = (socket.inet_ntoa(records[at + 12 : at + 16]) for at in range(0, 16 * count, 16))
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]
