"""Every failure this system can name, what it means to a caller, and whether to try again.

    ZiyaError
    ├── InvalidRequest             the caller must change the request
    │   ├── BadField               one field of the request is wrong; says which
    │   ├── BodyTooLarge           more bytes than are read
    │   ├── InvalidImage           not an image, truncated, too large
    │   ├── InvalidEnvelope        a tensor envelope that fails its checks
    │   └── PromptTooLong          more positions than the model's context
    ├── NotFound                   an image_id or key that is not (any more) cached
    │   ├── ModelNotFound          a model that is not served here
    │   └── VisualTokensMissing    tokens vanished between announcement and use: compute them again
    │       └── VisualTokensSpoilt what lies under the key fails its checks: throw it away first
    ├── Unauthenticated            missing or wrong API key
    ├── Forbidden                  a good API key that may not do this
    ├── Unimplemented              the checkpoint lacks what the call needs
    ├── DeadlineExceeded           no time left; the work was dropped
    ├── Cancelled                  the client went away
    ├── Internal                   a defect of ours
    └── Transient                  the same request may succeed later
        ├── Overloaded             a bounded queue is full (Retry-After)
        │   └── RateLimited        an API key's own limit is used up
        ├── Unavailable            a stage cannot be reached or is draining
        └── BusUnavailable         Redis cannot be reached: use the inline path

One table maps the tree to gRPC and HTTP; `to_line` and `from_line` carry an error over a border that
has only text (Triton's stream, the announcement stream).
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import ClassVar

from grpc import StatusCode

# Characters of a sentence, and of a field's path: who sends a long name for something is not sent it back.
MAX_MESSAGE = 1000
MAX_PARAM = 200


class ZiyaError(Exception):
    """Root of the tree. `message` is a sentence for the caller; it never holds secrets or tracebacks."""

    retryable: ClassVar[bool] = False

    @property
    def message(self) -> str:
        text = str(self)
        return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}…"


class InvalidRequest(ZiyaError):
    """The request is wrong in itself; the sentence names the field."""


class BadField(InvalidRequest):
    """A field of the request is wrong: `param` is its path as OpenAI writes it, `code` a word for programs."""

    def __init__(self, message: str, param: str = "", code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param[:MAX_PARAM]
        self.code = code


class BodyTooLarge(InvalidRequest):
    """The request's body has more bytes than are read."""


class InvalidImage(InvalidRequest):
    """The bytes are not an image that we accept."""


class InvalidEnvelope(InvalidRequest):
    """A tensor envelope fails a check, before anything is allocated."""


class PromptTooLong(InvalidRequest):
    """Prompt and images take more positions than the model has."""


class NotFound(ZiyaError):
    """A named thing is not (any more) there."""


class ModelNotFound(NotFound):
    """The request names a model that is not served here."""


class VisualTokensMissing(NotFound):
    """A key was announced or believed cached, but the bytes are gone: the caller computes them again."""


class VisualTokensSpoilt(VisualTokensMissing):
    """What lies on the bus under a key fails its checks, and has to be thrown away before anybody computes it again."""


class Unauthenticated(ZiyaError):
    """No API key, or a wrong one."""


class Forbidden(ZiyaError):
    """The API key is known, and not allowed to do this."""


class Unimplemented(ZiyaError):
    """The loaded checkpoint cannot do this."""


class DeadlineExceeded(ZiyaError):
    """The caller's time is over."""


class Cancelled(ZiyaError):
    """The caller no longer wants the answer."""


class Internal(ZiyaError):
    """A defect of ours; details are in the log under the request id."""


class Transient(ZiyaError):
    """Trying again may succeed."""

    retryable = True


class Overloaded(Transient):
    """A bounded queue is full. `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimited(Overloaded):
    """An API key has used up a limit of its own; others are served. `limits`: how they stand, by HTTP header."""

    def __init__(self, message: str, retry_after: float = 1.0, limits: Mapping[str, str] | None = None) -> None:
        super().__init__(message, retry_after)
        self.limits = dict(limits or {})


class Unavailable(Transient):
    """A stage cannot be reached, or is draining."""


class BusUnavailable(Transient):
    """Redis cannot be reached."""


STATUS: dict[type[ZiyaError], tuple[StatusCode, HTTPStatus]] = {
    BodyTooLarge: (StatusCode.INVALID_ARGUMENT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    InvalidRequest: (StatusCode.INVALID_ARGUMENT, HTTPStatus.BAD_REQUEST),
    NotFound: (StatusCode.NOT_FOUND, HTTPStatus.NOT_FOUND),
    Unauthenticated: (StatusCode.UNAUTHENTICATED, HTTPStatus.UNAUTHORIZED),
    Forbidden: (StatusCode.PERMISSION_DENIED, HTTPStatus.FORBIDDEN),
    Unimplemented: (StatusCode.UNIMPLEMENTED, HTTPStatus.NOT_IMPLEMENTED),
    DeadlineExceeded: (StatusCode.DEADLINE_EXCEEDED, HTTPStatus.GATEWAY_TIMEOUT),
    Cancelled: (StatusCode.CANCELLED, HTTPStatus.REQUEST_TIMEOUT),
    Overloaded: (StatusCode.RESOURCE_EXHAUSTED, HTTPStatus.TOO_MANY_REQUESTS),
    Transient: (StatusCode.UNAVAILABLE, HTTPStatus.SERVICE_UNAVAILABLE),
    ZiyaError: (StatusCode.INTERNAL, HTTPStatus.INTERNAL_SERVER_ERROR),
}


def status_of(error: ZiyaError) -> tuple[StatusCode, HTTPStatus]:
    """The gRPC and HTTP status of an error: that of its nearest class in `STATUS`."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    raise AssertionError("every ZiyaError descends from ZiyaError")


def _tree() -> dict[str, type[ZiyaError]]:
    names: dict[str, type[ZiyaError]] = {}
    todo: list[type[ZiyaError]] = [ZiyaError]
    while todo:
        kind = todo.pop()
        names[kind.__name__] = kind
        todo.extend(kind.__subclasses__())
    return names


def to_line(error: ZiyaError) -> str:
    """`Name: sentence`, for a border that carries only text."""
    return f"{type(error).__name__}: {error.message}"


def from_line(line: str) -> ZiyaError:
    """The error that `to_line` wrote, wherever in `line` it begins; `Internal` when there is none."""
    kinds = _tree()
    head, separator, message = line.partition(": ")
    name = head.split()[-1] if head.split() else ""
    if separator and name in kinds:
        return kinds[name](message)
    return Internal(line)


def from_status(code: StatusCode, message: str) -> ZiyaError:
    """The error a peer meant by a gRPC status; a message written by `to_line` keeps its exact class."""
    exact = from_line(message)
    if not isinstance(exact, Internal) or message.startswith("Internal: "):
        return exact
    for kind, (grpc_code, _) in STATUS.items():
        if grpc_code is code:
            return Unavailable(message) if kind is Transient else kind(message)
    return Unavailable(message) if code is StatusCode.UNKNOWN else Internal(message)
