"""Who may ask: the API keys that open this gateway, from a setting or from a file that may be exchanged.

A file is looked at once a second at most. One that is gone, holds no key (any more) or has a wrong line changes
nothing: the gateway goes on with the keys that it has, rather than open to everybody or shut to all.

A key that comes in is hashed and looked up by its hash. How long that takes depends on hashes, which nobody can steer
towards one that is kept; so it tells nothing about any key.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from services.gateway.keys.key_entry import Key, Limits, Priority, digest_of, parse_keys
from ziya.errors import BadField, Forbidden, Unauthenticated
from ziya.settings import SettingsError

LOOK_SECONDS = 1.0
PRIORITY_HEADER = "x-priority"
log = logging.getLogger(__name__)


class KeyFileError(SettingsError):
    """A file that cannot be used; the sentence names it."""


class KeyFile:
    """The keys in a file, by digest. Raises KeyFileError at once when there is none."""

    def __init__(self, path: Path, defaults: Limits = Limits()) -> None:  # noqa: B008 (frozen)
        self._path, self._defaults = path, defaults
        self._keys = self._read()
        self._looked = time.monotonic()

    def __call__(self) -> Mapping[str, Key]:
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

    def _read(self) -> Mapping[str, Key]:
        try:
            keys = parse_keys(self._path.read_text("utf-8"), self._defaults)
        except (OSError, UnicodeDecodeError) as error:
            raise KeyFileError(f"ZIYA_GATEWAY_API_KEYS_FILE: {self._path} cannot be read: {error}") from error
        except ValueError as error:
            raise KeyFileError(f"ZIYA_GATEWAY_API_KEYS_FILE: {self._path}, {error}") from error
        if not keys:
            raise KeyFileError(f"ZIYA_GATEWAY_API_KEYS_FILE: {self._path} holds no key")
        return keys


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is, and how urgent: the key's own priority, or what the request asked for."""

    key: Key
    priority: Priority


class Keys:
    """Knows whoever has one of the keys that `now` gives; when it never gives any, everybody is `anybody`."""

    def __init__(self, now: Callable[[], Mapping[str, Key]], anybody: Key, *, salted: bool = False) -> None:
        self._now, self._anybody, self._salted = now, anybody, salted

    @property
    def needed(self) -> bool:
        """Whether there are keys at all."""
        return bool(self._now())

    def check(self, authorization: str) -> Key:
        """Whose key an `Authorization` value holds; its salt is "" unless salted. Raises Unauthenticated."""
        keys = self._now()
        if not keys:
            return self._anybody
        scheme, _, given = authorization.strip().partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise Unauthenticated("an API key is needed: send the header `Authorization: Bearer KEY`")
        key = keys.get(digest_of(given.strip()))
        if key is None:
            raise Unauthenticated("this API key is not known here")
        return key if self._salted else replace(key, salt="")

    def caller(self, authorization: str, priority: str = "") -> Caller:
        """Who asks, by the headers `Authorization` and `X-Priority`.

        Everybody may ask below the key's own priority. Raises Unauthenticated, BadField, and Forbidden above it.
        """
        key = self.check(authorization)
        if not priority:
            return Caller(key, key.priority)
        try:
            wanted = Priority[priority.strip().upper()]
        except KeyError:
            words = ", ".join(one.name.lower() for one in Priority)
            raise BadField(f"{PRIORITY_HEADER} must be one of {words}, not {priority!r}", PRIORITY_HEADER) from None
        if wanted > key.priority and not key.role.may_raise_priority:
            raise Forbidden(f"the key {key.name} has priority {key.priority.name.lower()} and may not ask above it")
        return Caller(key, wanted)
