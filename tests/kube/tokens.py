"""Who is asking: bearer tokens of people, and the signed tokens of service accounts."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.kube.objects import Object, dig, timestamp
from tests.kube.verbs import Api

AUDIENCE = "https://kubernetes.default.svc"
PREFIX = "system:serviceaccount:"
_POD = ("authentication.kubernetes.io/pod-name", "authentication.kubernetes.io/pod-uid")


@dataclass(frozen=True)
class User:
    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: dict[str, list[str]] = field(default_factory=dict, hash=False)

    def body(self) -> Object:
        told: Object = {"username": self.name, "uid": self.uid, "groups": list(self.groups), "extra": self.extra}
        return {key: value for key, value in told.items() if value}


ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


class Refused(Exception):
    """A token that is nobody's; the text says why."""


class Tokens:
    """Issues and reads them. A token of a service account holds as long as its account, and its pod, are there."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._key = secrets.token_bytes(32)
        self._people: dict[str, User] = {}

    def person(self, name: str, *groups: str) -> str:
        """A new token for a user who is no service account."""
        token = secrets.token_hex(16)
        self._people[token] = User(name, (*groups, "system:authenticated"))
        return token

    def issue(self, account: Object, audiences: list[str], seconds: float, pod: Object | None = None) -> str:
        meta = account["metadata"]
        bound: Object = {"namespace": meta["namespace"], "serviceaccount": {"name": meta["name"], "uid": meta["uid"]}}
        if pod is not None:
            bound["pod"] = {"name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
        now = time.time()
        claims = {
            "aud": audiences or [AUDIENCE],
            "iat": int(now),
            "exp": now + seconds,
            "iss": AUDIENCE,
            "sub": f"{PREFIX}{meta['namespace']}:{meta['name']}",
            "kubernetes.io": bound,
        }
        body = f"{_encode({'alg': 'HS256'})}.{_encode(claims)}"
        return f"{body}.{self._signature(body)}"

    def authenticate(self, token: str, audiences: list[str] | None = None) -> tuple[User, list[str]]:
        """Whose it is, and for which of the audiences asked for it is meant."""
        person = self._people.get(token)
        if person is not None:
            return person, audiences or [AUDIENCE]
        claims = self._claims(token)
        fitting = [each for each in audiences or [AUDIENCE] if each in claims["aud"]]
        if not fitting:
            raise Refused(f"token audiences {claims['aud']} is invalid for the target audiences {audiences}")
        if time.time() > claims["exp"]:
            raise Refused("service account token has expired")
        return self._holder(claims), fitting

    def _claims(self, token: str) -> dict[str, Any]:
        body, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(body).encode()):
            raise Refused("invalid bearer token")
        payload = body.partition(".")[2]
        claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return claims

    def _holder(self, claims: dict[str, Any]) -> User:
        bound = claims["kubernetes.io"]
        namespace, account = bound["namespace"], bound["serviceaccount"]
        held = self._api.store.get(("", "serviceaccounts"), (namespace, account["name"]))
        if held is None or held["metadata"]["uid"] != account["uid"]:
            raise Refused("service account token has been invalidated")
        extra: dict[str, list[str]] = {}
        if pod := bound.get("pod"):
            running = self._api.store.get(("", "pods"), (namespace, pod["name"]))
            if running is None or dig(running, "metadata", "uid") != pod["uid"]:
                raise Refused("service account token has been invalidated: the pod it was bound to is gone")
            extra = {_POD[0]: [pod["name"]], _POD[1]: [pod["uid"]]}
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
        return User(claims["sub"], groups, account["uid"], extra)

    def _signature(self, body: str) -> str:
        return _plain(hmac.new(self._key, body.encode(), hashlib.sha256).digest())


def _encode(value: Object) -> str:
    return _plain(json.dumps(value, separators=(",", ":")).encode())


def _plain(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def review(tokens: Tokens, body: Object) -> Object:
    """The answer to a TokenReview."""
    spec = body.get("spec") or {}
    audiences = spec.get("audiences") or None
    try:
        user, fitting = tokens.authenticate(spec.get("token", ""), audiences)
    except Refused as refusal:
        return {**body, "status": {"user": {}, "error": f"[invalid bearer token, {refusal}]"}}
    return {**body, "status": {"authenticated": True, "user": user.body(), "audiences": fitting}}


def expiry(seconds: float) -> str:
    return timestamp(datetime.now(UTC) + timedelta(seconds=seconds))
