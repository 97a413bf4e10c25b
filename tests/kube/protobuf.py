"""Kubernetes' protobuf, as far as Helm's typed client sends it: Secrets, and the options of a deletion.

A body is four bytes, then a runtime.Unknown with the kind in field 1 and the message in field 2. Numbers of fields are
those of generated.proto in k8s.io/api/core/v1 and k8s.io/apimachinery/pkg/apis/meta/v1. Answers are JSON, which every
client takes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.kube.objects import Object

MEDIA = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Field(NamedTuple):
    """`kind`: text, bytes, integer, boolean, the name of a message, or of what a map from text holds."""

    name: str
    kind: str
    repeats: bool = False
    maps: bool = False


_SHAPES: dict[str, dict[int, Field]] = {
    "Unknown": {1: Field("type", "TypeMeta"), 2: Field("raw", "bytes"), 3: Field("e", "text"), 4: Field("c", "text")},
    "TypeMeta": {1: Field("apiVersion", "text"), 2: Field("kind", "text")},
    "ObjectMeta": {
        1: Field("name", "text"),
        2: Field("generateName", "text"),
        3: Field("namespace", "text"),
        4: Field("selfLink", "text"),
        5: Field("uid", "text"),
        6: Field("resourceVersion", "text"),
        7: Field("generation", "integer"),
        8: Field("creationTimestamp", "nothing"),
        11: Field("labels", "text", maps=True),
        12: Field("annotations", "text", maps=True),
        14: Field("finalizers", "text", repeats=True),
    },
    "Secret": {
        1: Field("metadata", "ObjectMeta"),
        2: Field("data", "bytes", maps=True),
        3: Field("type", "text"),
        4: Field("stringData", "text", maps=True),
        5: Field("immutable", "boolean"),
    },
    "DeleteOptions": {
        1: Field("gracePeriodSeconds", "integer"),
        2: Field("preconditions", "Preconditions"),
        3: Field("orphanDependents", "boolean"),
        4: Field("propagationPolicy", "text"),
        5: Field("dryRun", "text", repeats=True),
    },
    "Preconditions": {1: Field("uid", "text"), 2: Field("resourceVersion", "text")},
}
_READ = ("Secret", "DeleteOptions")


def decode(body: bytes) -> Object:
    """The object as JSON has it. Raises ValueError for what this cannot read."""
    if not body.startswith(_MAGIC):
        raise ValueError("protobuf without its first four bytes")
    unknown = _message(body[len(_MAGIC) :], "Unknown")
    kind = unknown["type"].get("kind", "")
    if kind not in _READ:
        raise ValueError(f"this server reads protobuf of {' and '.join(_READ)} alone, not of {kind}")
    return {**unknown["type"], **_message(base64.b64decode(unknown.get("raw", "")), kind)}


def _message(data: bytes, shape: str) -> Object:
    found: Object = {}
    for number, value in _fields(data):
        field = _SHAPES[shape].get(number)
        if field is None:
            raise ValueError(f"field {number} of {shape} is not known here")
        if field.maps:
            entry = dict(_fields(value))
            found.setdefault(field.name, {})[entry.get(1, b"").decode()] = _value(entry.get(2, b""), field.kind)
        elif field.repeats:
            found.setdefault(field.name, []).append(_value(value, field.kind))
        elif field.kind != "nothing":
            found[field.name] = _value(value, field.kind)
    return {name: value for name, value in found.items() if value != ""}


def _value(value: Any, kind: str) -> Any:
    if kind == "bytes":
        return base64.b64encode(value).decode()
    if kind == "text":
        return value.decode()
    if kind == "boolean":
        return bool(value)
    return value if kind == "integer" else _message(value, kind)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == _BYTES:
            length, place = _varint(data, place)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if place + length > len(data):
            raise ValueError("unexpected end of the message")
        yield number, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(data):
            raise ValueError("unexpected end of the message")
        byte = data[place]
        value, place, shift = value | (byte & 0x7F) << shift, place + 1, shift + 7
        if byte < 0x80:
            return value, place
