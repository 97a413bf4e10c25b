"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}} and the status they travel with."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Any

from ziya import errors
from ziya.errors import ZiyaError, status_of

_TYPES = {
    HTTPStatus.BAD_REQUEST: "invalid_request_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "invalid_request_error",
    HTTPStatus.METHOD_NOT_ALLOWED: "invalid_request_error",
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.NOT_IMPLEMENTED: "not_implemented_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "service_unavailable_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
}
_CODES: dict[type[ZiyaError], str] = {
    errors.BodyTooLarge: "request_too_large",
    errors.PromptTooLong: "context_length_exceeded",
    errors.InvalidImage: "invalid_image",
    errors.Unauthenticated: "invalid_api_key",
    errors.Forbidden: "forbidden",
    errors.ModelNotFound: "model_not_found",
    errors.NotFound: "image_not_found",
    errors.RateLimited: "rate_limit_exceeded",
    errors.Overloaded: "overloaded",
    errors.Unavailable: "stage_unavailable",
    errors.DeadlineExceeded: "deadline_exceeded",
    errors.Unimplemented: "not_implemented",
    errors.Internal: "internal_error",
}


def error_object(error: ZiyaError) -> dict[str, Any]:
    """The JSON object of an error."""
    if isinstance(error, errors.BadField):
        return _object(error.message, status_of(error)[1], error.param or None, error.code)
    code = next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), None)
    return _object(error.message, status_of(error)[1], None, code)


def error_json(error: ZiyaError) -> bytes:
    """`error_object` as bytes."""
    return json.dumps(error_object(error), ensure_ascii=False).encode()


def error_headers(error: ZiyaError) -> dict[str, str]:
    """Headers that belong to an error."""
    if isinstance(error, errors.Overloaded):
        limits = error.limits if isinstance(error, errors.RateLimited) else {}
        return {"Retry-After": f"{max(1, math.ceil(error.retry_after))}", **limits}
    if isinstance(error, errors.Transient):
        return {"Retry-After": "1"}
    if isinstance(error, errors.Unauthenticated):
        return {"WWW-Authenticate": "Bearer"}
    return {}


def plain_error(message: str, status: int) -> dict[str, Any]:
    """The JSON object of an error of HTTP itself: no such path, no such method."""
    return _object(message, HTTPStatus(status), None, None)


def _object(message: str, status: HTTPStatus, param: str | None, code: str | None) -> dict[str, Any]:
    kind = _TYPES.get(status, "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
