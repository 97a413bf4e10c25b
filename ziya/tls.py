"""Mutual TLS between the stages: one folder of PEM files a process, read again when they change.

The folder is laid out as Kubernetes mounts a Secret of a certificate: `tls.crt`, `tls.key`, `ca.crt`. A server demands
a certificate of every caller that the same authority signed. Files are looked at once a second at most; while a new
pair is half written (key and certificate do not belong together) the old one stays. Servers show the new certificate
from the next handshake on; a channel is replaced by a new one, and the calls on the old one end as they would have.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from ziya.settings import ProcessSettings, SettingsError
from ziya.telemetry import Metrics

LOOK_SECONDS = 1.0
CERTIFICATE, KEY, AUTHORITY = "tls.crt", "tls.key", "ca.crt"
# The calls on a channel that was replaced end within this time, or are cancelled.
RETIRE_SECONDS = 600.0
log = logging.getLogger(__name__)


class TlsError(SettingsError):
    """A folder that cannot be used; the sentence names the file."""


@dataclass(frozen=True)
class Identity:
    """PEM bytes: who this process is, and whom it trusts. `expires` is in unix seconds."""

    chain: bytes
    key: bytes
    authority: bytes
    expires: float

    @classmethod
    def read(cls, folder: Path) -> Identity:
        """Raises TlsError for a missing or foreign file, and for a key that is not the certificate's."""
        chain, key, authority = (_bytes(folder / name) for name in (CERTIFICATE, KEY, AUTHORITY))
        certificate = _certificate(folder / CERTIFICATE, chain)
        _certificate(folder / AUTHORITY, authority)
        try:
            own = load_pem_private_key(key, password=None).public_key()
        except (ValueError, TypeError) as error:
            raise TlsError(f"{folder / KEY} is not a private key without a password") from error
        if _raw(own) != _raw(certificate.public_key()):
            raise TlsError(f"{folder / KEY} is not the key of {folder / CERTIFICATE}")
        return cls(chain, key, authority, certificate.not_valid_after_utc.timestamp())


class TlsFolder:
    """Files that may be exchanged at any time. Raises TlsError at once when they cannot be used."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = self._stamps()
        self._identity = Identity.read(folder)
        self._looked = time.monotonic()

    @classmethod
    def of(cls, settings: ProcessSettings, metrics: Metrics) -> Self | None:
        """The folder that a program's settings name, with a gauge of when its certificate ends; None for none."""
        if settings.tls_dir is None:
            return None
        made = cls(settings.tls_dir)
        gauge = metrics.gauge("certificate_expires_timestamp_seconds", "When the certificate in use ends, in unix time")
        gauge.set_function(lambda: made.identity.expires)
        return made

    @property
    def identity(self) -> Identity:
        """The newest whole one; the same object until the files change."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._look()
        return self._identity

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a server that demands a certificate of its callers."""
        shown: list[Identity] = []

        def fetch() -> grpc.ServerCertificateConfiguration | None:  # at every handshake, in a thread of gRPC
            identity = self.identity
            if shown and shown[0] is identity:
                return None  # as before
            shown[:] = [identity]
            return _server_configuration(identity)

        first = _server_configuration(self.identity)
        return grpc.dynamic_ssl_server_credentials(
            first,
            fetch,  # type: ignore[arg-type]  # None means "as before", which the stubs do not know
            require_client_authentication=True,
        )

    def channel(self, target: str, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
        """A channel that shows the newest certificate, to a server that the authority vouches for."""

        def make(identity: Identity) -> grpc.aio.Channel:
            credentials = grpc.ssl_channel_credentials(identity.authority, identity.key, identity.chain)
            return grpc.aio.secure_channel(target, credentials, options=options)

        return RenewedChannel(self, make)

    def _look(self) -> None:
        stamps = self._stamps()
        if stamps == self._seen:
            return
        try:
            identity = Identity.read(self._folder)
        except TlsError as error:
            log.warning("the new certificate cannot be used (yet), the old one stays: %s", error)
            return
        if identity != self._identity:
            self._identity = identity
            log.info("the certificate was renewed", extra={"expires": identity.expires})
        self._seen = stamps

    def _stamps(self) -> list[tuple[int, int, int]]:
        try:
            found = [(self._folder / name).stat() for name in (CERTIFICATE, KEY, AUTHORITY)]
        except OSError:
            return []
        return [(one.st_mtime_ns, one.st_ino, one.st_size) for one in found]


class RenewedChannel(grpc.aio.Channel):
    """Stands before the channel of the folder's newest identity; stubs are made from it once."""

    def __init__(self, folder: TlsFolder, make: Callable[[Identity], grpc.aio.Channel]) -> None:
        self._folder, self._make = folder, make
        self._identity = folder.identity
        self._channel = make(self._identity)
        self._retired: set[asyncio.Task[None]] = set()

    @property
    def current(self) -> grpc.aio.Channel:
        """The channel for the next call."""
        identity = self._folder.identity
        if identity is not self._identity:
            old, self._identity, self._channel = self._channel, identity, self._make(identity)
            task = asyncio.create_task(old.close(RETIRE_SECONDS))
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)
        return self._channel

    async def __aenter__(self) -> RenewedChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close(None)

    async def close(self, grace: float | None = None) -> None:
        for task in list(self._retired):
            task.cancel()
        await asyncio.gather(*self._retired, return_exceptions=True)
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.current.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self.current.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.current.channel_ready()

    def unary_unary(self, *method: Any, **coders: Any) -> Any:
        return self._of("unary_unary", method, coders)

    def unary_stream(self, *method: Any, **coders: Any) -> Any:
        return self._of("unary_stream", method, coders)

    def stream_unary(self, *method: Any, **coders: Any) -> Any:
        return self._of("stream_unary", method, coders)

    def stream_stream(self, *method: Any, **coders: Any) -> Any:
        return self._of("stream_stream", method, coders)

    def _of(self, kind: str, method: tuple[Any, ...], coders: dict[str, Any]) -> Callable[..., Any]:
        made: list[Any] = [None, None]  # the channel, and its method

        def call(*request: Any, **terms: Any) -> Any:
            channel = self.current
            if made[0] is not channel:
                made[:] = [channel, getattr(channel, kind)(*method, **coders)]
            return made[1](*request, **terms)

        return call


def _server_configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(identity.key, identity.chain)], identity.authority)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{path} cannot be read: {error.strerror}") from error


def _certificate(path: Path, pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise TlsError(f"{path} is not a certificate in PEM") from error


def _raw(key: Any) -> bytes:
    raw: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return raw
