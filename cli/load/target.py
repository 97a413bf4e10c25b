"""What is measured: an address as a person types it, which protocol it speaks, and which model it serves."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from cli.load.grpc_caller import GrpcCaller
from cli.load.openai_caller import OpenAICaller
from cli.load.request import Caller, Clock, Options
from cli.text import CommandError

_PORTS = {"grpc": "9000", "grpcs": "443"}


@dataclass(frozen=True)
class Target:
    """`address` is the URL before /chat/completions, or host:port of a gRPC server."""

    scheme: str
    address: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """From http(s)://host:port, with or without /v1, or grpc(s)://host:port. Raises CommandError."""
        url = urlsplit(text if "://" in text else f"http://{text}")
        try:
            known = bool(url.hostname) and (url.port or True)
        except ValueError:
            known = False
        if not known or url.scheme not in ("http", "https", *_PORTS):
            raise CommandError(f"--url is an address such as http://host:8000 or grpc://host:9000, not {text!r}", 2)
        if url.scheme in _PORTS:
            return cls(url.scheme, url.netloc if url.port else f"{url.netloc}:{_PORTS[url.scheme]}")
        path = url.path.rstrip("/").removesuffix("/chat/completions")
        if not re.search(r"/v\d+$", path):
            path += "/v1"
        return cls(url.scheme, urlunsplit((url.scheme, url.netloc, path, url.query, "")))

    @property
    def is_grpc(self) -> bool:
        return self.scheme in _PORTS

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}" if self.is_grpc else self.address

    def caller(self, model: str, options: Options, clock: Clock, api_key: str | None) -> Caller:
        if self.is_grpc:
            return GrpcCaller(self.address, model, options, clock, api_key, secure=self.scheme == "grpcs")
        return OpenAICaller(self.address, model, options, clock, api_key)

    async def served(self, api_key: str | None) -> tuple[str, str]:
        """The first model that the server lists, and who owns it. A gRPC server has one, and is not asked.

        Raises CommandError when nothing answers, or no model is listed.
        """
        if self.is_grpc:
            return "", "ziya-visual"
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            # With the certificates of the machine, as the load itself; httpx has its own.
            context = ssl.create_default_context()
            async with httpx.AsyncClient(timeout=10.0, trust_env=False, headers=headers, verify=context) as client:
                reply = await client.get(f"{self.address}/models")
        except httpx.HTTPError as error:
            raise CommandError(f"nothing answers at {self.address}: {error or type(error).__name__}") from error
        if reply.status_code == 401:
            raise CommandError(f"{self.address} wants an API key: give it with --api-key or OPENAI_API_KEY")
        try:
            models: list[dict[str, Any]] = reply.json()["data"]
            return str(models[0]["id"]), str(models[0].get("owned_by") or "")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise CommandError(f"{self.address} lists no model (status {reply.status_code}): give --model") from error
