"""Some hundred hostile inputs for everything that strangers reach; `make fuzz` takes ten thousand and more.

Seeds are fixed, so that a run says nothing today that it did not say yesterday. Both ends are held to account: inputs
that are refused, and inputs that pass, or else nothing behind the first check was reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.fuzz import answers, entries, messages, requests, sockets
from tests.fuzz.check import Outcome, Target, fuzz
from tests.fuzz.edges import Edges, listening
from tests.fuzz.pure import PURE
from tests.redis_server import RedisServer

pytestmark = pytest.mark.xdist_group("hostile")


@pytest.fixture(scope="module")
def edges(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, shared_redis: RedisServer
) -> Iterator[Edges]:
    with listening(shared_redis.url, tmp_path_factory.mktemp("gateway"), tiny_checkpoint) as made:
        yield made


def hold(target: Target, examples: int, *, both: bool = True) -> None:
    """No input may find a defect; with `both`, some are to be answered and some refused."""
    report = fuzz(target, examples)
    assert not report.found, "\n\n".join(report.found[:3])
    if both:
        assert report.counts[Outcome.REFUSED] > 0
        assert report.counts[Outcome.ANSWERED] > 0


@pytest.mark.parametrize("target", PURE, ids=lambda target: target.name)
def test_what_only_computes(target: Target) -> None:
    hold(target, 800)


def test_answers_of_a_hostile_web_server() -> None:
    with answers.target() as target:
        hold(target, 100)


def test_entries_of_the_bus(short_folder: Path) -> None:
    with entries.target(short_folder) as target:
        hold(target, 150, both=False)


def test_requests_over_http(edges: Edges) -> None:
    hold(requests.target(edges.http_port), 400)


def test_bytes_on_the_http_port(edges: Edges) -> None:
    hold(sockets.http_target(edges.http_port), 300)


def test_messages_over_grpc(edges: Edges) -> None:
    with grpc.insecure_channel(edges.grpc) as chat:
        hold(messages.target("VisualChat", {"VisualChat": chat}), 200)
    with grpc.insecure_channel(edges.vision) as vision, grpc.insecure_channel(edges.qformer) as qformer:
        hold(messages.target("encoders", {"VisionEncoder": vision, "QFormer": qformer}), 200)


def test_frames_on_a_grpc_port(edges: Edges) -> None:
    hold(sockets.grpc_target(edges.vision), 100, both=False)
