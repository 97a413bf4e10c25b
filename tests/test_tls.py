"""Mutual TLS between stages over real sockets: who is let in, and that certificates may be exchanged at any time."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from protos.qformer_pb2_grpc import QFormerStub
from tests.certificates import Authority
from tests.rpc_service import ask, health, running
from ziya import rpc, tls
from ziya.errors import Unavailable
from ziya.rpc_server import ServerOptions
from ziya.settings import ProcessSettings
from ziya.telemetry import Metrics
from ziya.tls import Identity, TlsError, TlsFolder


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "LOOK_SECONDS", 0.0)


def options(folder: Path) -> ServerOptions:
    return ServerOptions(tls=TlsFolder(folder))


def shown(target: str) -> int:
    """The serial number of the certificate that the server shows now."""
    host, port = target.split(":")
    pem = ssl.get_server_certificate((host, int(port)), timeout=10)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


async def refused(target: str, folder: TlsFolder | None) -> None:
    channel = rpc.connect(target, tls=folder)
    try:
        with pytest.raises(Unavailable):
            await rpc.call(QFormerStub(channel).Query, ask("x"))
    finally:
        await channel.close(None)


async def test_both_sides_know_each_other(authority: Authority, tmp_path: Path) -> None:
    for side in ("server", "client"):
        authority.issue(tmp_path / side)
    async with running(options(tmp_path / "server")) as server:
        channel = rpc.connect(server.target, tls=TlsFolder(tmp_path / "client"))
        reply = await rpc.call(QFormerStub(channel).Query, ask("你好"))
        assert reply.tokens_key == "你好"
        assert await health(channel) == 1
        await channel.close(None)


async def test_strangers_are_not_let_in(authority: Authority, tmp_path: Path) -> None:
    authority.issue(tmp_path / "server")
    Authority().issue(tmp_path / "stranger")
    authority.issue(tmp_path / "expired", seconds=-60)
    # A stranger who believes our server, but has a certificate of another authority.
    (tmp_path / "stranger" / "ca.crt").write_bytes(authority.pem)
    async with running(options(tmp_path / "server")) as server:
        await refused(server.target, TlsFolder(tmp_path / "stranger"))
        await refused(server.target, TlsFolder(tmp_path / "expired"))
        await refused(server.target, None)
        assert server.service.request_ids == []


async def test_a_server_that_our_authority_does_not_know_is_not_believed(authority: Authority, tmp_path: Path) -> None:
    Authority().issue(tmp_path / "impostor")
    authority.issue(tmp_path / "client")
    async with running(options(tmp_path / "impostor")) as server:
        await refused(server.target, TlsFolder(tmp_path / "client"))


async def test_a_server_shows_a_renewed_certificate_without_a_restart(authority: Authority, tmp_path: Path) -> None:
    first = authority.issue(tmp_path)
    async with running(options(tmp_path)) as server:
        assert await asyncio.to_thread(shown, server.target) == first
        second = authority.issue(tmp_path)
        assert await asyncio.to_thread(shown, server.target) == second != first


async def test_a_channel_takes_a_renewed_certificate_and_finishes_its_calls(
    authority: Authority, tmp_path: Path
) -> None:
    authority.issue(tmp_path / "server")
    authority.issue(tmp_path / "client", seconds=3600)
    folder = TlsFolder(tmp_path / "client")
    async with running(options(tmp_path / "server")) as server:
        channel = rpc.connect(server.target, tls=folder)
        query = QFormerStub(channel).Query
        waiting = asyncio.create_task(rpc.call(query, ask("wait")))
        await server.service.begun.wait()
        before = channel.current  # type: ignore[attr-defined]
        authority.issue(tmp_path / "client")
        assert (await rpc.call(query, ask("after"))).tokens_key == "after"
        assert channel.current is not before  # type: ignore[attr-defined]
        server.service.released.set()
        assert (await waiting).tokens_key == "wait"
        await channel.close(None)


async def test_a_new_authority_takes_over_while_both_are_trusted(tmp_path: Path) -> None:
    old, new = Authority("old"), Authority("new")
    old.issue(tmp_path / "server")
    old.issue(tmp_path / "client")
    async with running(options(tmp_path / "server")) as server:
        channel = rpc.connect(server.target, tls=TlsFolder(tmp_path / "client"))
        query = QFormerStub(channel).Query
        for side in ("server", "client"):
            (tmp_path / side / "ca.crt").write_bytes(old.pem + new.pem)
        assert (await rpc.call(query, ask("both"))).tokens_key == "both"
        for side in ("server", "client"):
            new.issue(tmp_path / side)
            (tmp_path / side / "ca.crt").write_bytes(old.pem + new.pem)
            assert (await rpc.call(query, ask(side))).tokens_key == side
        await channel.close(None)


def test_a_half_written_pair_leaves_the_old_one(authority: Authority, tmp_path: Path) -> None:
    authority.issue(tmp_path / "own")
    authority.issue(tmp_path / "next")
    folder = TlsFolder(tmp_path / "own")
    before = folder.identity
    (tmp_path / "own" / "tls.crt").write_bytes((tmp_path / "next" / "tls.crt").read_bytes())
    assert folder.identity is before
    (tmp_path / "own" / "tls.key").unlink()
    assert folder.identity is before
    (tmp_path / "own" / "tls.key").write_bytes((tmp_path / "next" / "tls.key").read_bytes())
    assert folder.identity == Identity.read(tmp_path / "next") != before


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("ca.crt", None, "ca.crt cannot be read: No such file"),
        ("tls.crt", b"nonsense", "tls.crt is not a certificate in PEM"),
        ("ca.crt", b"nonsense", "ca.crt is not a certificate in PEM"),
        ("tls.key", b"nonsense", "tls.key is not a private key without a password"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(
    authority: Authority, tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    authority.issue(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TlsError, match=sentence):
        TlsFolder(tmp_path)


def test_a_key_of_another_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    authority.issue(tmp_path / "own")
    authority.issue(tmp_path / "other")
    (tmp_path / "own" / "tls.key").write_bytes((tmp_path / "other" / "tls.key").read_bytes())
    with pytest.raises(TlsError, match=r"tls\.key is not the key of .*tls\.crt"):
        TlsFolder(tmp_path / "own")


def test_the_gauge_tells_when_the_certificate_ends(authority: Authority, tmp_path: Path) -> None:
    authority.issue(tmp_path, seconds=1000)
    metrics = Metrics("test")
    assert TlsFolder.of(ProcessSettings(checkpoint=tmp_path), metrics) is None
    folder = TlsFolder.of(ProcessSettings(checkpoint=tmp_path, tls_dir=tmp_path), metrics)
    assert folder is not None
    told = metrics.registry.get_sample_value("ziya_test_certificate_expires_timestamp_seconds")
    assert told == folder.identity.expires
    assert abs(told - time.time() - 1000) < 60
    authority.issue(tmp_path, seconds=9000)
    assert metrics.registry.get_sample_value("ziya_test_certificate_expires_timestamp_seconds") > told + 5000


async def test_without_tls_nothing_changes() -> None:
    async with running() as server:
        assert isinstance(server.channel(), grpc.aio.Channel)
        assert (await rpc.call(server.query(), ask("plain"))).tokens_key == "plain"
