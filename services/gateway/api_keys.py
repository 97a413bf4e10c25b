"""Who may ask: the API keys that open this gateway, from a setting or from a file that may be exchanged.

A file is looked at once a second at most. One that is gone, or holds no key (any more), changes nothing: the gateway
goes on with the keys that it has, rather than open to everybody or shut to all.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

from ziya.errors import Unauthenticated
from ziya.settings import SettingsError

LOOK_SECONDS = 1.0
log = logging.getLogger(__name__)


class KeyFileError(SettingsError):
    """A file that cannot be used; the sentence names it."""


class KeyFile:
    """Keys with commas or line breaks between them. Raises KeyFileError at once when there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys = self._read()
        self._looked = time.monotonic()

    def __call__(self) -> tuple[str, ...]:
        """The keys as they are now."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            try:
                keys = self._read()
            except KeyFileError as error:
                log.warning("the API keys stay as they were: %s", error)
            else:
                if keys != self._keys:
                    log.info("the API keys changed", extra={"keys": len(keys)})
                self._keys = keys
        return self._keys

    def _read(self) -> tuple[str, ...]:
        try:
            text = self._path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise KeyFileError(f"ZIYA_GATEWAY_API_KEYS_FILE: {self._path} cannot be read: {error}") from error
        keys = split(text)
        if not keys:
            raise KeyFileError(f"ZIYA_GATEWAY_API_KEYS_FILE: {self._path} holds no key")
        return keys


class Keys:
    """Lets in whoever has one of the keys that `now` gives; when it never gives any, everybody may ask."""

    def __init__(self, now: Callable[[], tuple[str, ...]], *, salted: bool = False) -> None:
        self._now, self._salted = now, salted

    def check(self, authorization: str) -> str:
        """The tenant's salt of an `Authorization` value ("" unless salted). Raises Unauthenticated."""
        keys = self._now()
        if not keys:
            return ""
        scheme, _, given = authorization.strip().partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise Unauthenticated("an API key is needed: send the header `Authorization: Bearer KEY`")
        # All keys are compared, each in constant time: the time taken tells nothing about any of them.
        matches = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys]
        if not any(matches):
            raise Unauthenticated("this API key is not known here")
        return hashlib.sha256(given.strip().encode()).hexdigest()[:32] if self._salted else ""


def split(text: str) -> tuple[str, ...]:
    """The keys in a text."""
    return tuple(key for part in re.split(r"[,\r\n]", text) if (key := part.strip()))
