"""Where a model answers, what it charges, and how hard it may be pressed."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from training.errors import BadConfig

MILLION = 1_000_000


@dataclass(frozen=True)
class Price:
    """Dollars for a million tokens of the prompt, and of the answer."""

    prompt: float = 0.0
    completion: float = 0.0

    def dollars(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / MILLION


@dataclass(frozen=True)
class Endpoint:
    """A model at an OpenAI-compatible URL. The limits hold for one process: processes that share a key divide them.

    `timeout` is seconds for one whole answer. A question is tried `max_attempts` times; while nothing at all answers it
    is tried on, for `patience` seconds. `image_tokens` is what an image costs at most. `revision` tells apart
    models that go by the same name, and is part of what names a question. Raises BadConfig.
    """

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout: float = 120.0
    price: Price = Price()
    max_attempts: int = 8
    patience: float = 300.0
    image_tokens: int = 2000
    revision: str = ""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise BadConfig(f"{self.url}: not the URL of a server, such as http://localhost:8000/v1")
        if parts.username or parts.password:
            raise BadConfig(f"{parts.hostname}: a URL may hold no password; give the key apart from it")
        if not self.model:
            raise BadConfig(f"{self.url}: no model is named")
        least = {"concurrency": self.concurrency, "max_attempts": self.max_attempts}
        for name, value in least.items():
            if value < 1:
                raise BadConfig(f"{name} must be at least 1, not {value}")
        positive = {
            "requests_per_minute": self.requests_per_minute,
            "tokens_per_minute": self.tokens_per_minute,
            "timeout": self.timeout,
        }
        for name, number in positive.items():
            if number is not None and number <= 0:
                raise BadConfig(f"{name} must be more than 0, not {number}")
        if min(self.price.prompt, self.price.completion) < 0:
            raise BadConfig(f"{self.model}: a price cannot be below 0")

    @property
    def base_url(self) -> str:
        """The URL that paths are added to; a bare host means its /v1, as every such server has it."""
        return f"{self.url.rstrip('/')}/v1" if urlsplit(self.url).path in {"", "/"} else self.url

    @property
    def is_here(self) -> bool:
        """On this machine: no proxy stands between."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")
