"""How a process makes itself known to Redis: user from the URL, password from a file, certificate from a folder.

Both files may be exchanged while the process runs: they are read for every new connection. Without them a URL is used
as it stands, its password too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from redis.credentials import CredentialProvider

from ziya.settings import ProcessSettings
from ziya.tls import AUTHORITY, CERTIFICATE, KEY


class FilePassword(CredentialProvider):
    """User and password, as they are now. Raises OSError when the file cannot be read."""

    def __init__(self, user: str, file: Path) -> None:
        self._user, self._file = user, file

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        password = self._file.read_text("utf-8").strip()
        return (self._user, password) if self._user else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


@dataclass(frozen=True)
class RedisLogin:
    """`tls_dir` holds `ca.crt` and, where Redis wants to know its clients, `tls.crt` and `tls.key`."""

    tls_dir: Path | None = None
    password_file: Path | None = None

    @classmethod
    def of(cls, settings: ProcessSettings) -> RedisLogin:
        return cls(settings.redis_tls_dir, settings.redis_password_file)

    def bare(self, url: str) -> str:
        """The URL without user and password, when the password is in the file."""
        if self.password_file is None:
            return url
        parts = urlsplit(url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    def password(self, url: str) -> FilePassword | None:
        """Who logs in, when the password is in the file."""
        if self.password_file is None:
            return None
        return FilePassword(unquote(urlsplit(url).username or ""), self.password_file)

    def tls_options(self, url: str) -> dict[str, Any]:
        """What redis-py wants for an encrypted URL: names of files, which it opens for each connection."""
        if self.tls_dir is None or not url.startswith("rediss:"):
            return {}
        own = {"ssl_certfile": CERTIFICATE, "ssl_keyfile": KEY} if (self.tls_dir / CERTIFICATE).exists() else {}
        files = {name: str(self.tls_dir / file) for name, file in {"ssl_ca_certs": AUTHORITY, **own}.items()}
        return {**files, "ssl_cert_reqs": "required", "ssl_check_hostname": True}

    def options(self, url: str) -> dict[str, Any]:
        """All keyword arguments of a redis-py client or pool for the `bare` URL."""
        password = self.password(url)
        return {**self.tls_options(url), **({} if password is None else {"credential_provider": password})}
