"""What the gateway reads from the environment: the shared ZIYA_… names, and its own ZIYA_GATEWAY_… ones."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, SecretStr, model_validator

from services.gateway.images.fetch import Fetch
from ziya.settings import ProcessSettings


class Settings(ProcessSettings):
    """Times are in seconds, sizes in bytes; port 0 means any free port."""

    program: ClassVar[str] = "gateway"

    gateway_http_port: int = Field(8080, ge=0, le=65535)
    gateway_grpc_port: int = Field(9000, ge=0, le=65535)
    gateway_metrics_port: int | None = Field(None, ge=0, le=65535)
    # Whether the public port shows /metrics, too. Where strangers reach it, they should not read them.
    gateway_http_metrics: bool = True
    gateway_vision: str = "127.0.0.1:9001"
    gateway_qformer: str = "127.0.0.1:9002"
    gateway_triton: str = "127.0.0.1:8001"
    gateway_model_name: str = Field("ziya-visual", min_length=1)
    # Keys that open the API, separated by commas; empty means that everybody may ask. `ziya key new` makes one.
    gateway_api_keys: SecretStr = SecretStr("")
    # Or a file with a key a line, hashed or plain, that may be exchanged while the gateway runs (docs/api.md).
    gateway_api_keys_file: Path | None = None
    # With API keys: no key's images can be found in the cache by another key.
    gateway_salt_by_key: bool = False
    # What a key may take whose line does not say: images and tokens a minute, requests at once; unset is no limit.
    gateway_key_images_per_minute: int | None = Field(None, ge=1)
    gateway_key_tokens_per_minute: int | None = Field(None, ge=1)
    gateway_key_concurrent: int | None = Field(None, ge=1)
    # How long a request waits for Redis to say what its key has left; then this process decides alone.
    gateway_quota_seconds: float = Field(0.25, gt=0)
    # For so long the requests of a gateway that was killed count against their keys.
    gateway_lease_seconds: float = Field(10.0, ge=0.3)
    # What is worked on at once: requests, their images until the first text, tokens of prompts and longest answers.
    gateway_max_in_flight: int = Field(128, ge=1)
    gateway_max_images_in_flight: int = Field(256, ge=1)
    gateway_max_tokens_in_flight: int = Field(262_144, ge=1)
    # Further requests that wait for room, and for how long; more are refused, those of low priority first.
    gateway_max_waiting: int = Field(32, ge=0)
    gateway_max_wait_seconds: float = Field(2.0, gt=0)
    gateway_max_body_bytes: int = Field(64 << 20, ge=1024)
    # Of all requests inside; memory is about twice as much.
    gateway_max_body_bytes_in_flight: int = Field(256 << 20, ge=1024)
    gateway_max_image_bytes: int = Field(20 << 20, ge=1024)
    gateway_max_request_timeout: float = Field(600.0, gt=0)
    gateway_heartbeat_seconds: float = Field(10.0, gt=0)
    # Which image URLs are fetched: off, https, all (http, too).
    gateway_fetch: Fetch = Fetch.HTTPS
    # Lets fetches reach private, loopback and link-local addresses.
    gateway_fetch_private: bool = False
    gateway_fetch_seconds: float = Field(10.0, gt=0)
    # For how long a stage that cannot be reached is asked again before the first text.
    gateway_retry_seconds: float = Field(30.0, ge=0)
    # Without text for so long, it is checked that the visual tokens exist; if not, they go inline.
    gateway_watch_seconds: float = Field(3.0, gt=0)
    # How often Redis is asked whether it is back.
    gateway_probe_seconds: float = Field(1.0, gt=0)
    # How long a readiness check waits for a stage.
    gateway_ready_seconds: float = Field(2.0, gt=0)
    # The chat page at `/`; unset is on where gradio is installed.
    gateway_page: bool | None = None

    @model_validator(mode="after")
    def _one_source_of_keys(self) -> Self:
        if self.gateway_api_keys_file is not None and self.gateway_api_keys.get_secret_value():
            raise ValueError("set ZIYA_GATEWAY_API_KEYS or ZIYA_GATEWAY_API_KEYS_FILE, not both")
        return self
