"""What an API key is: a name, what it may do, and how much of the system it may take.

A line of the keys file holds the SHA-256 of a key, never the key. One round of a fast hash is right here, and a slow
one would be wrong: slow hashes defend secrets that people choose, which can be guessed; a key of ours is 256 random
bits, which cannot, and a hash is computed for every request.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

PREFIX = "zk-"
SECRET_BYTES = 32


class Role(StrEnum):
    """Who holds a key: a client, a program of the operator's own, or a person who runs the system."""

    USER = "user"
    INTERNAL = "internal"
    ADMIN = "admin"

    @property
    def sees_metrics(self) -> bool:
        return self is not Role.USER

    @property
    def may_raise_priority(self) -> bool:
        return self is Role.ADMIN


class Priority(IntEnum):
    """Under overload the higher goes first and the lowest is refused first."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one key, over all gateways; None is no limit. Rates are per minute, `concurrent` counts requests."""

    images: int | None = None
    tokens: int | None = None
    concurrent: int | None = None

    @property
    def any(self) -> bool:
        return self != Limits()


@dataclass(frozen=True, slots=True)
class Key:
    """A known key. `weight`: its part of a busy system, beside others'. `adapters`: None allows every adapter."""

    name: str
    role: Role = Role.USER
    priority: Priority = Priority.NORMAL
    weight: float = 1.0
    limits: Limits = Limits()
    adapters: frozenset[str] | None = None
    salt: str = ""


class KeyEntry(BaseModel):
    """A line of the keys file, as JSON. A limit that is absent takes the gateway's default; null means none."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    role: Role = Role.USER
    priority: Literal["low", "normal", "high"] = "normal"
    weight: float = Field(1.0, gt=0, le=100)
    images_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    concurrent: int | None = Field(None, ge=1)
    adapters: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, line: str) -> Self:
        """Raises ValueError with a sentence that names the field, and never what stood there."""
        try:
            return cls.model_validate_json(line)
        except ValidationError as error:
            detail = error.errors(include_input=False, include_url=False)[0]
            raise ValueError(_sentence(detail) or "not valid JSON") from None

    @classmethod
    def of(cls, secret: str, **fields: Any) -> Self:
        """The entry of a key. Raises ValueError as `parse` does."""
        try:
            return cls(sha256=digest_of(secret), **fields)
        except ValidationError as error:
            raise ValueError(_sentence(error.errors(include_input=False, include_url=False)[0])) from None

    def line(self) -> str:
        """The entry as `parse` reads it, without what is at its default."""
        return json.dumps(self.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)

    def key(self, defaults: Limits) -> Key:
        given = self.model_fields_set
        limits = Limits(
            self.images_per_minute if "images_per_minute" in given else defaults.images,
            self.tokens_per_minute if "tokens_per_minute" in given else defaults.tokens,
            self.concurrent if "concurrent" in given else defaults.concurrent,
        )
        adapters = None if self.adapters is None else frozenset(self.adapters)
        priority = Priority[self.priority.upper()]
        return Key(self.name, self.role, priority, self.weight, limits, adapters, salt_of(self.sha256))


_FORMS = {
    "name": "letters, digits and . _ - are allowed, 64 at most, a letter or digit first",
    "sha256": "64 hexadecimal digits are wanted, in lower case",
}


def _sentence(detail: ErrorDetails) -> str:
    """What is wrong with which field, without what stood there; "" where it is no field's fault."""
    where, said = ".".join(map(str, detail["loc"])), str(detail["msg"])
    if detail["type"] == "string_pattern_mismatch" and where in _FORMS:
        said = _FORMS[where]
    return f"{where}: {said[:1].lower()}{said[1:]}" if where else ""


def new_secret() -> str:
    """A key that nobody can guess: 256 random bits in 43 characters, after a prefix that secret scanners can find."""
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def digest_of(secret: str) -> str:
    """What is kept of a key: 64 hexadecimal digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def salt_of(digest: str) -> str:
    """The tenant's salt of a key; not a part of the digest, for salts travel to every stage."""
    return hashlib.sha256(b"ziya salt " + digest.encode()).hexdigest()[:32]


def parse_keys(text: str, defaults: Limits) -> dict[str, Key]:
    """The keys in a text, by digest. A line is a JSON entry, or plain keys with commas between them; `# …` is skipped.

    Plain keys are named by their place: key-1, key-2. Raises ValueError naming the line; no line is ever quoted.
    """
    keys: dict[str, Key] = {}
    names: set[str] = set()
    plain = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("{"):
            try:
                entry = KeyEntry.parse(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            if entry.name in names or entry.sha256 in keys:
                raise ValueError(f"line {number}: the key {entry.name} is there twice")
            names.add(entry.name)
            keys[entry.sha256] = entry.key(defaults)
        elif not re.match(r"\s*#(\s|$)", line):
            for secret in filter(None, map(str.strip, line.split(","))):
                plain += 1
                digest = digest_of(secret)
                keys.setdefault(digest, Key(f"key-{plain}", limits=defaults, salt=salt_of(digest)))
    return keys
