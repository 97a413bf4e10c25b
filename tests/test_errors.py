"""Every error of the tree through a real call: its status, its sentence, and the very class back."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from protos.qformer_pb2 import QueryRequest
from tests.rpc_service import SENTENCE, running
from ziya import rpc
from ziya.errors import (
    STATUS,
    Internal,
    InvalidImage,
    Overloaded,
    Unavailable,
    ZiyaError,
    from_line,
    from_status,
    status_of,
    to_line,
)


def _walk(kind: type[ZiyaError] = ZiyaError) -> list[type[ZiyaError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _walk(child))]


TREE = _walk()


def test_the_walk_sees_the_whole_tree() -> None:
    assert len(TREE) >= 16
    assert {InvalidImage, Overloaded, Unavailable} <= set(TREE)


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
async def test_every_error_survives_a_call(kind: type[ZiyaError]) -> None:
    async with running() as server:
        with pytest.raises(ZiyaError) as caught:
            await rpc.call(server.query(), QueryRequest(instruction=f"raise {kind.__name__}"))
    assert type(caught.value) is kind
    assert str(caught.value) == SENTENCE
    wire = caught.value.__cause__
    assert isinstance(wire, grpc.aio.AioRpcError)
    assert wire.code() is status_of(kind(SENTENCE))[0]


async def test_a_long_sentence_is_cut_and_keeps_its_class() -> None:
    async with running() as server:
        with pytest.raises(InvalidImage) as caught:
            await rpc.call(server.query(), QueryRequest(instruction="long InvalidImage"))
    assert 400 < len(str(caught.value)) < 600
    assert set(str(caught.value)) == {"长"}


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_error_survives_a_line(kind: type[ZiyaError]) -> None:
    back = from_line(to_line(kind(SENTENCE)))
    assert type(back) is kind
    assert str(back) == SENTENCE


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_grpc_and_http_agree_on_whose_fault_it_is(kind: type[ZiyaError]) -> None:
    code, http = status_of(kind("x"))
    ours = {
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
    assert (http >= 500) == (code in ours)
    assert kind.retryable == (code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED))


def test_a_line_may_stand_behind_other_words() -> None:
    # Triton puts its own words before the message of a TritonError.
    back = from_line("in ensemble 'x', InvalidImage: the file is truncated")
    assert type(back) is InvalidImage
    assert str(back) == "the file is truncated"


def test_a_line_of_a_stranger_is_internal() -> None:
    assert type(from_line("segmentation fault")) is Internal
    assert type(from_line("")) is Internal
    assert type(from_line("KeyError: 'x'")) is Internal


def test_a_status_of_a_stranger_takes_the_nearest_class() -> None:
    for kind, (code, _) in STATUS.items():
        expected = {ZiyaError: Internal}.get(kind, kind)
        got = type(from_status(code, "what gRPC itself says"))
        assert issubclass(got, expected) or issubclass(expected, got)
    assert type(from_status(grpc.StatusCode.UNAVAILABLE, "connection refused")) is Unavailable


async def test_overloaded_keeps_its_retry_after() -> None:
    async with running() as server:
        with pytest.raises(Overloaded) as caught:
            await rpc.call(server.query(), QueryRequest(instruction="raise Overloaded"))
    assert caught.value.retry_after == 1.0
