"""The environment a process runs in, as one frozen, typed value.

Every variable begins with `ZIYA_`. Fields that all programs share stand here; a program subclasses
`ProcessSettings`, names itself in `program`, and gives its own fields names that begin with that word
(`vision_port` is `ZIYA_VISION_PORT`). All programs can run in one environment: a variable of another
program is left alone, while a misspelt one stops the process at start, with its name in the message.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "ZIYA_"
# Variables that begin with one of these belong to that program alone. A new program adds its word here.
PROGRAMS = frozenset({"vision", "qformer", "gateway", "llama", "triton", "operator", "train", "data", "up", "bench"})

# Values of names with these words may hold a password and are not printed.
SECRET = ("URL", "KEY", "TOKEN", "PASSWORD", "ENDPOINT")


class SettingsError(ValueError):
    """What a setting names cannot be used; the sentence says what it is. A restart will not cure it."""


class ProcessSettings(BaseSettings):
    """What every program needs to know. Times are in seconds, sizes in bytes; port 0 means any free port."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")
    program: ClassVar[str] = ""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    host: str = "127.0.0.1"
    redis_url: str = Field(default="redis://127.0.0.1:6379/0", pattern=r"^(redis|rediss|unix)://", repr=False)
    checkpoint: Path
    # A folder with tls.crt, tls.key and ca.crt: calls between stages are encrypted, and both sides show who they are.
    tls_dir: Path | None = None
    # The same for Redis, with a rediss:// URL; ca.crt alone will do where it does not ask for certificates.
    redis_tls_dir: Path | None = None
    # Holds the password of the user in the Redis URL; read for each new connection, so it may be exchanged.
    redis_password_file: Path | None = None
    # The longest that any request may take when its caller gives no deadline.
    request_timeout: float = Field(default=60.0, gt=0)
    # How long a stopping process lets the calls in flight go on.
    drain_seconds: float = Field(default=10.0, ge=0)
    # At least the longest queue deadline plus one retry: shorter, and a queued request finds nothing.
    features_ttl: float = Field(default=600.0, gt=0)
    tokens_ttl: float = Field(default=600.0, gt=0)
    max_message_bytes: int = Field(default=32 << 20, ge=1 << 16)
    # Calls in flight in one process; more are refused with RESOURCE_EXHAUSTED.
    max_concurrent: int = Field(default=256, ge=1)
    # A Redis command that takes longer counts as an outage.
    bus_timeout: float = Field(default=2.0, gt=0)
    # A starting process is ready when Redis has answered once, or after so long without it. 0 does not wait.
    redis_start_seconds: float = Field(default=60.0, ge=0)
    # References queued for the Q-Former, unread or unfinished; more are refused.
    bus_max_backlog: int = Field(default=1024, ge=1)
    # A collector that takes OpenTelemetry's spans (OTLP over HTTP, as http://collector:4318); empty takes none.
    otlp_endpoint: str = Field(default="", pattern=r"^(https?://[^\s/@]+[^\s@]*)?$")
    # The part of the traces that is taken; one that a caller began is taken if the caller says so.
    otlp_ratio: float = Field(default=1.0, ge=0, le=1)

    @classmethod
    def load(cls) -> Self:
        """Reads the environment. On a wrong name or value: one sentence on stderr, and exit status 2."""
        complaints = list(cls._unknown_names(os.environ))
        if not complaints:
            try:
                return cls()  # type: ignore[call-arg]  # the environment gives the rest
            except ValidationError as error:
                complaints = [_sentence(detail) for detail in error.errors()]
        print("\n".join(complaints), file=sys.stderr)  # noqa: T201 (logging is not set up yet)
        sys.exit(2)

    @classmethod
    def _unknown_names(cls, names: Iterable[str]) -> Iterable[str]:
        known = {PREFIX + field.upper() for field in cls.model_fields}
        for name in sorted(n for n in names if n.upper().startswith(PREFIX)):
            word = name[len(PREFIX) :].lower().split("_")[0]
            if name.upper() in known or (word in PROGRAMS and word != cls.program):
                continue
            close = get_close_matches(name.upper(), known, n=1)
            yield f"{name} is not a setting of this program" + (f"; did you mean {close[0]}?" if close else "")


def metrics_port(grpc_port: int, chosen: int | None) -> int:
    """The metrics port of a service: the chosen one, else its gRPC port + 100 (any free one when that is 0)."""
    if chosen is not None:
        return chosen
    return grpc_port + 100 if grpc_port else 0


def _sentence(detail: Any) -> str:
    if not detail["loc"]:  # of a rule across fields
        return str(detail["ctx"]["error"])
    name = PREFIX + "_".join(str(part) for part in detail["loc"]).upper()
    if detail["type"] == "missing":
        return f"{name} is not set, and it has no default"
    given = "" if any(word in name for word in SECRET) else f", not {detail['input']!r}"
    return f"{name}: {detail['msg'][0].lower()}{detail['msg'][1:]}{given}"
