"""The gateway: OpenAI's HTTP API and VisualChat over gRPC, on one event loop, before vision, Q-Former and Triton.

Run as `python -m services.gateway.app`; settings.py has what it reads from the environment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
import uvloop

from protos.chat_pb2_grpc import add_VisualChatServicer_to_server
from services.gateway import chat_service, web_server
from services.gateway.admission.admission import Admission, Capacity
from services.gateway.admission.body_room import BodyRoom
from services.gateway.admission.cost import Costs
from services.gateway.admission.metrics import AdmissionMetrics
from services.gateway.breaker import Breaker
from services.gateway.completions import Completions
from services.gateway.encoders import Encoders
from services.gateway.front import Bounds, Front, TimeLimits
from services.gateway.health import Readiness, grpc_serving
from services.gateway.http_api import HttpApi
from services.gateway.images.addresses import Resolver, any_address, is_public
from services.gateway.images.fetch import Fetcher, FetchPolicy
from services.gateway.images.image_source import ImageOpener
from services.gateway.keys.api_keys import KeyFile, Keys
from services.gateway.keys.key_entry import Key, Limits, parse_keys
from services.gateway.keys.quotas import Quotas, QuotaTimes
from services.gateway.llama import LlamaClient
from services.gateway.metrics import GatewayMetrics
from services.gateway.page import process
from services.gateway.page.facts import PageFacts
from services.gateway.page.process import PageProcess
from services.gateway.page.proxy import PageProxy
from services.gateway.paths import Paths
from services.gateway.pipeline import Pipeline
from services.gateway.settings import Settings
from services.gateway.together import cancel
from ziya import rpc, rpc_server, telemetry
from ziya.bus import Bus
from ziya.checkpoint import CheckpointConfig, read_config
from ziya.content import ContentKeys
from ziya.event_loop import PromptGrpc
from ziya.heap import keep_what_is_loaded
from ziya.images import ImageLimits
from ziya.program import run
from ziya.redis_arrival import RedisArrival
from ziya.settings import metrics_port
from ziya.tls import TlsFolder

SERVICE = "gateway"
VISION = "ziya.visual.v1.VisionEncoder"
QFORMER = "ziya.visual.v1.QFormer"


class Loop(PromptGrpc, uvloop.Loop):  # type: ignore[misc]  # uvloop's stubs differ from asyncio's
    """uvloop's, prompt for gRPC."""


@dataclass(frozen=True)
class Gateway:
    """Where a running gateway listens."""

    http_port: int
    grpc_port: int
    metrics_port: int


@dataclass(frozen=True)
class _Stages:
    """What stands behind the gateway."""

    vision: grpc.aio.Channel
    qformer: grpc.aio.Channel
    llama: LlamaClient
    bus: Bus


async def main(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT."""
    async with running(settings) as gateway:
        ports = {"http": gateway.http_port, "grpc": gateway.grpc_port, "metrics": gateway.metrics_port}
        keep_what_is_loaded()
        telemetry.announce_listening(SERVICE, **ports)
        await rpc_server.stop_signal()


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Gateway]:
    """Starts everything; on leaving drains, then stops it. Raises OSError when a port is taken."""
    async with AsyncExitStack() as stack:
        metrics = telemetry.Metrics(SERVICE)
        stages = await _stages(settings, metrics, stack)
        front = await _front(settings, stages, metrics, stack)
        arrival = RedisArrival.of(stages.bus, settings)
        shown = metrics.registry if settings.gateway_http_metrics else None
        page = _page(settings, front, stack)
        install = process.INSTALL if page is None and settings.gateway_page is None else ""
        answers, readiness = _completions(settings, front), _readiness(settings, stages, arrival)
        api = HttpApi(front, answers, readiness, shown, page=page, install=install)
        server = rpc_server.GrpcServer(
            SERVICE,
            lambda target: add_VisualChatServicer_to_server(chat_service.ChatService(front), target),
            [chat_service.FULL_NAME],
            options=rpc_server.ServerOptions.of(settings, port=settings.gateway_grpc_port, metrics_port=0),
            metrics=metrics,
            ready=arrival.wait,
        )
        port = metrics_port(settings.gateway_grpc_port, settings.gateway_metrics_port)
        exporter, exporter_port = telemetry.serve_metrics(metrics.registry, settings.host, port)
        stack.callback(exporter.close)
        grpc_port = await server.open()
        stack.push_async_callback(server.stop)
        becoming = asyncio.create_task(server.become_ready())
        stack.push_async_callback(cancel, [becoming])
        http_port = await stack.enter_async_context(
            web_server.serving(api.app, settings.host, settings.gateway_http_port)
        )
        if page is not None:
            page.process.at(settings.host, http_port)
        yield Gateway(http_port, grpc_port, exporter_port)
        await asyncio.gather(server.drain(), front.admission.drain(settings.drain_seconds))
        if page is not None:
            await page.process.stop()  # before the web server, which would wait for the tabs that are open


async def _stages(settings: Settings, metrics: telemetry.Metrics, stack: AsyncExitStack) -> _Stages:
    size, tls = settings.max_message_bytes, TlsFolder.of(settings, metrics)
    vision = rpc.connect(settings.gateway_vision, max_message_bytes=size, tls=tls, watch=VISION)
    qformer = rpc.connect(settings.gateway_qformer, max_message_bytes=size, tls=tls, watch=QFORMER)
    triton = rpc.connect(settings.gateway_triton, max_message_bytes=size, keepalive=False, tls=tls)
    for channel in (vision, qformer, triton):
        stack.push_async_callback(channel.close, None)
    bus = Bus.of(settings, metrics)
    stack.push_async_callback(bus.close)
    return _Stages(vision, qformer, LlamaClient(triton), bus)


async def _front(settings: Settings, stages: _Stages, metrics: telemetry.Metrics, stack: AsyncExitStack) -> Front:
    """Makes the objects and hands them to one another; the stack closes what must be closed."""
    numbers = GatewayMetrics(metrics)
    content = ContentKeys.load(settings.checkpoint)
    breaker = Breaker(stages.bus.ping, interval=settings.gateway_probe_seconds, report=numbers.bus_up.set)
    stack.push_async_callback(breaker.close)
    policy = FetchPolicy(
        allow=settings.gateway_fetch,
        max_bytes=settings.gateway_max_image_bytes,
        seconds=settings.gateway_fetch_seconds,
        max_request_bytes=settings.gateway_max_body_bytes,
        any_port=settings.gateway_fetch_private,
    )
    fetcher = Fetcher(policy, Resolver(any_address if settings.gateway_fetch_private else is_public))
    stack.callback(fetcher.close)
    paths = Paths(
        content.config,
        stages.bus,
        breaker,
        Encoders(stages.vision, stages.qformer, content.config),
        stages.llama,
        tokens_ttl=settings.tokens_ttl,
        watch=settings.gateway_watch_seconds,
    )
    opener = ImageOpener(fetcher, ImageLimits(max_bytes=settings.gateway_max_image_bytes))
    return Front(
        settings.gateway_model_name,
        keys=_keys(settings),
        bounds=_bounds(settings, stages.bus, content.config, AdmissionMetrics(metrics), stack),
        limits=TimeLimits(settings.request_timeout, settings.gateway_max_request_timeout),
        pipeline=Pipeline(content, opener, paths, numbers, patience=settings.gateway_retry_seconds),
        metrics=numbers,
    )


def _bounds(
    settings: Settings, bus: Bus, config: CheckpointConfig, numbers: AdmissionMetrics, stack: AsyncExitStack
) -> Bounds:
    capacity = Capacity(
        requests=settings.gateway_max_in_flight,
        images=settings.gateway_max_images_in_flight,
        tokens=settings.gateway_max_tokens_in_flight,
        waiting=settings.gateway_max_waiting,
        wait_seconds=settings.gateway_max_wait_seconds,
    )
    times = QuotaTimes(settings.gateway_quota_seconds, settings.gateway_lease_seconds)
    quotas = Quotas(bus.link, numbers, times)
    stack.push_async_callback(quotas.close)
    bodies = BodyRoom(settings.gateway_max_body_bytes_in_flight, numbers)
    return Bounds(Costs(config), quotas, Admission(capacity, numbers), bodies, numbers)


def _keys(settings: Settings) -> Keys:
    defaults = Limits(
        settings.gateway_key_images_per_minute,
        settings.gateway_key_tokens_per_minute,
        settings.gateway_key_concurrent,
    )
    anybody = Key("anybody", limits=defaults)
    salted = settings.gateway_salt_by_key
    if settings.gateway_api_keys_file is not None:
        return Keys(KeyFile(settings.gateway_api_keys_file, defaults), anybody, salted=salted)
    fixed = parse_keys(settings.gateway_api_keys.get_secret_value(), defaults)
    return Keys(lambda: fixed, anybody, salted=salted)


def _page(settings: Settings, front: Front, stack: AsyncExitStack) -> PageProxy | None:
    """The chat page, which has no process yet. Raises SettingsError when it is wanted and gradio is not here."""
    if not process.wanted(settings.gateway_page):
        return None
    facts = PageFacts.of(
        settings.checkpoint,
        read_config(settings.checkpoint),
        model=front.model,
        keys_needed=front.keys.needed,
        max_image_bytes=settings.gateway_max_image_bytes,
        timeout=settings.request_timeout,
    )
    page = PageProxy(PageProcess(facts), settings.gateway_max_body_bytes)
    stack.push_async_callback(page.close)
    return page


def _completions(settings: Settings, front: Front) -> Completions:
    return Completions(front, max_body=settings.gateway_max_body_bytes, heartbeat=settings.gateway_heartbeat_seconds)


def _readiness(settings: Settings, stages: _Stages, arrival: RedisArrival) -> Readiness:
    needed = {
        "llama": stages.llama.ready,
        "vision": grpc_serving(stages.vision, VISION),
        "qformer": grpc_serving(stages.qformer, QFORMER),
    }
    optional = {"redis": stages.bus.ping}
    return Readiness(needed, optional, seconds=settings.gateway_ready_seconds, arrived=lambda: arrival.over)


if __name__ == "__main__":
    run(Settings, main, new_event_loop=Loop)
