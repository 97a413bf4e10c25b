"""Replicas behind one name, as behind a headless Service: calls go to all, to those that come, and to none that goes.

The replicas are addresses of the loopback net with one port; the name server is the test's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from protos.qformer_pb2_grpc import QFormerStub
from tests.dns_server import NAME, Names, naming
from tests.rpc_service import FULL_NAME, Running, ask, running
from ziya import rpc
from ziya.rpc_server import ServerOptions

# Seconds; the shorter, the sooner a name is asked for again.
CONNECTION_AGE = 0.5


@dataclass
class Replicas:
    """What runs, by address, and a client that knows the name alone."""

    names: Names
    port: int
    stack: AsyncExitStack
    query: Any = None
    services: dict[str, Running] = field(default_factory=dict)

    async def add(self, address: str) -> None:
        options = ServerOptions(host=address, port=self.port, max_connection_age=CONNECTION_AGE)
        self.services[address] = await self.stack.enter_async_context(running(options))
        self.names.addresses.append(address)

    def served(self) -> dict[str, int]:
        """Calls of each replica so far."""
        return {address: len(one.service.request_ids) for address, one in self.services.items()}

    async def ask(self, count: int) -> dict[str, int]:
        """Calls one after the other, none of which may fail; how many each replica got."""
        before = self.served()
        for number in range(count):
            await rpc.call(self.query, ask(str(number)))
        return {address: now - before.get(address, 0) for address, now in self.served().items()}


@asynccontextmanager
async def replicas(port: int, *addresses: str) -> AsyncIterator[Replicas]:
    async with naming() as names, AsyncExitStack() as stack:
        made = Replicas(names, port, stack)
        for address in addresses:
            await made.add(address)
        channel = rpc.connect(f"dns://127.0.0.1:{names.port}/{NAME}:{port}", watch=FULL_NAME)
        stack.push_async_callback(channel.close, None)
        made.query = QFormerStub(channel).Query
        yield made


async def until_all_serve(made: Replicas, count: int) -> None:
    """Asks on until each of `count` replicas gets calls; pytest's timeout is the bound."""
    while sum(calls > 0 for calls in (await made.ask(4 * count)).values()) < count:
        await asyncio.sleep(0.05)


async def test_calls_go_to_all_replicas_in_turn(free_port: int) -> None:
    async with replicas(free_port, "127.0.0.1", "127.0.0.2", "127.0.0.3") as made:
        await until_all_serve(made, 3)
        shares = await made.ask(300)
        # A connection that is being renewed misses a turn or two.
        assert min(shares.values()) > 70, shares


async def test_a_replica_that_comes_later_is_found(free_port: int) -> None:
    async with replicas(free_port, "127.0.0.1") as made:
        assert await made.ask(5) == {"127.0.0.1": 5}
        await made.add("127.0.0.2")
        await until_all_serve(made, 2)


async def test_a_replica_that_goes_takes_no_call_with_it(free_port: int) -> None:
    async with replicas(free_port, "127.0.0.1", "127.0.0.2") as made:
        await until_all_serve(made, 2)
        waiting = [asyncio.create_task(rpc.call(made.query, ask("wait"))) for _ in range(4)]
        leaving = made.services["127.0.0.2"]
        await leaving.service.begun.wait()
        made.names.addresses.remove("127.0.0.2")
        drain = asyncio.create_task(leaving.server.drain())
        while leaving.server.is_ready():
            await asyncio.sleep(0)
        # Its own calls end, and new ones go elsewhere, also those that it refuses while the client still knows it.
        assert (await made.ask(50))["127.0.0.1"] >= 50
        for one in made.services.values():
            one.service.released.set()
        assert [reply.tokens_key for reply in await asyncio.gather(*waiting)] == ["wait"] * 4
        await drain
        await leaving.server.stop()
        assert (await made.ask(50))["127.0.0.1"] >= 50
