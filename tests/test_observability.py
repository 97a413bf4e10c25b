"""What the real processes tell: one trace a request, by the bus and inline; logs; the metrics that are written down."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest

from protos import chat_pb2 as pb
from protos.chat_pb2_grpc import VisualChatStub
from tests.gateways import picture
from tests.otlp_receiver import Receiver, Span, receiving
from tests.picture_host import hosting
from tests.stack import Stack, launched, ziya

pytestmark = [pytest.mark.xdist_group("stack"), pytest.mark.timeout(240)]

GATEWAY, VISION, QFORMER, LLAMA = "ziya-gateway", "ziya-vision", "ziya-qformer", "ziya-llama"
HTTP = "POST /v1/chat/completions"
# What every answer's trace has: the parent of each span. The root's is what the client sent.
ALWAYS = {
    (GATEWAY, "gateway.admission"): (GATEWAY, HTTP),
    (GATEWAY, "gateway.images"): (GATEWAY, HTTP),
    (GATEWAY, "image.fetch"): (GATEWAY, "gateway.images"),
    (GATEWAY, "triton.infer"): (GATEWAY, HTTP),
    (GATEWAY, "vision.encode"): (GATEWAY, HTTP),
    (VISION, "VisionEncoder/Encode"): (GATEWAY, "vision.encode"),
    (VISION, "vision.decode"): (VISION, "VisionEncoder/Encode"),
    (VISION, "vision.queue"): (VISION, "VisionEncoder/Encode"),
    (VISION, "vision.batch"): (VISION, "VisionEncoder/Encode"),
    (VISION, "vision.forward"): (VISION, "vision.batch"),
    (QFORMER, "qformer.forward"): (QFORMER, "qformer.batch"),
    (LLAMA, "llama.request"): (GATEWAY, "triton.infer"),
    (LLAMA, "llama.queue"): (LLAMA, "llama.request"),
    (LLAMA, "llama.prefill"): (LLAMA, "llama.request"),
    (LLAMA, "llama.decode"): (LLAMA, "llama.request"),
}
BY_BUS = ALWAYS | {
    (VISION, "bus.publish"): (VISION, "VisionEncoder/Encode"),
    (QFORMER, "bus.wait"): (VISION, "bus.publish"),
    (QFORMER, "qformer.work"): (VISION, "bus.publish"),
    (QFORMER, "qformer.fetch"): (QFORMER, "qformer.work"),
    (QFORMER, "qformer.queue"): (QFORMER, "qformer.work"),
    (QFORMER, "qformer.batch"): (QFORMER, "qformer.work"),
    (QFORMER, "bus.finish"): (QFORMER, "qformer.work"),
    (LLAMA, "llama.visual_wait"): (LLAMA, "llama.request"),
}
INLINE = ALWAYS | {
    (GATEWAY, "qformer.query"): (GATEWAY, HTTP),
    (QFORMER, "QFormer/Query"): (GATEWAY, "qformer.query"),
    (QFORMER, "qformer.queue"): (QFORMER, "QFormer/Query"),
    (QFORMER, "qformer.batch"): (QFORMER, "QFormer/Query"),
}


@dataclass(frozen=True)
class Traced:
    """A stack whose processes send their spans to `receiver`."""

    stack: Stack
    receiver: Receiver

    async def ask(self, image: str, traceparent: str) -> httpx.Response:
        parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "这是什么？"}]
        body = {"model": "ziya-visual", "messages": [{"role": "user", "content": parts}], "max_tokens": 8}
        async with httpx.AsyncClient(base_url=self.stack.url, timeout=60, trust_env=False) as client:
            headers = {"traceparent": traceparent} if traceparent else {}
            reply = await client.post("/v1/chat/completions", json={**body, "ignore_eos": True}, headers=headers)
        assert reply.is_success, reply.text
        return reply

    async def until_by_bus(self) -> None:
        """Until the gateway uses Redis again; the test's own timeout ends a wait in vain."""
        async with httpx.AsyncClient(base_url=self.stack.url, trust_env=False) as client:
            while "ziya_gateway_bus_up 1.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.05)

    def lines(self, name: str) -> list[dict[str, object]]:
        log = (self.stack.state / "logs" / f"{name}.log").read_text("utf-8").splitlines()
        return [json.loads(line) for line in log if line.startswith("{")]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Traced]:
    with receiving() as receiver:
        environment = {
            "ZIYA_OTLP_ENDPOINT": receiver.url,
            "ZIYA_GATEWAY_FETCH": "all",
            "ZIYA_GATEWAY_FETCH_PRIVATE": "true",
            "ZIYA_VISION_MAX_WAIT": "0.05",
        }
        with launched(tmp_path_factory.mktemp("home"), tiny_checkpoint, environment) as stack:
            stack.until("ready http")
            yield Traced(stack, receiver)


def new_trace(flags: str = "01") -> tuple[str, str]:
    """A trace id that nobody else has, and the traceparent of a span in it."""
    trace = secrets.token_hex(16)
    return trace, f"00-{trace}-{secrets.token_hex(8)}-{flags}"


def parents(spans: list[Span]) -> dict[tuple[str, str], tuple[str, str]]:
    """Of each span but the root, its parent, by service and name."""
    known = {span.id: (span.service, span.name) for span in spans}
    return {(span.service, span.name): known[span.parent] for span in spans if span.parent in known}


def has(wanted: dict[tuple[str, str], tuple[str, str]], root: str = HTTP) -> object:
    names = {*wanted, (GATEWAY, root)}
    return lambda spans: names <= {(span.service, span.name) for span in spans}


async def test_a_request_by_the_bus_is_one_trace_of_all_processes(traced: Traced) -> None:
    trace, caller = new_trace()
    with hosting(picture("red")) as url:
        reply = await traced.ask(url, caller)
    spans = traced.receiver.until(trace, has(BY_BUS))
    assert parents(spans) == BY_BUS
    [root] = [span for span in spans if span.name == HTTP]
    assert (root.kind, root.parent) == ("SERVER", caller.split("-")[2])
    assert root.attributes["ziya.request_id"] == reply.headers["x-request-id"]
    assert all(root.start - 0.01 <= span.start <= span.end for span in spans)
    by_name = {span.name: span for span in spans}
    assert by_name["llama.prefill"].end <= by_name["llama.decode"].start + 0.001
    assert by_name["bus.wait"].end <= by_name["qformer.work"].start + 0.001
    assert by_name["vision.forward"].links == ((trace, by_name["vision.batch"].id),)
    assert by_name["llama.visual_wait"].links == ((trace, by_name["qformer.work"].id),)
    assert not any(span.failed for span in spans)


async def test_a_request_while_redis_is_silent_is_one_trace_too(traced: Traced) -> None:
    trace, caller = new_trace()
    redis = traced.stack.find("redis-server")
    with hosting(picture("green")) as url:
        redis.suspend()
        try:
            await traced.ask(url, caller)
        finally:
            redis.resume()
    await traced.until_by_bus()
    spans = traced.receiver.until(trace, has(INLINE))
    inline = [span for span in spans if span.attributes.get("ziya.inline") == "True"]
    assert {span.name for span in inline} == {"vision.encode", "triton.infer"}
    # The attempt by the bus comes before, and may have come as far as vision.
    found = parents([span for span in spans if not of_the_first_attempt(span, spans)])
    assert {name: found.get(name) for name in INLINE} == INLINE
    assert not [span for span in spans if span.name in ("bus.wait", "qformer.work")]


def of_the_first_attempt(span: Span, spans: list[Span]) -> bool:
    """Whether the span is, or is within, a call that was not inline."""
    around = {one.id: one for one in spans}
    at: Span | None = span
    while at is not None:
        if at.attributes.get("ziya.inline") == "False":
            return True
        at = around.get(at.parent)
    return False


async def test_two_requests_about_one_picture_are_two_traces_and_the_second_says_whose_tokens_it_had(
    traced: Traced,
) -> None:
    (first, caller), (second, later) = new_trace(), new_trace()
    with hosting(picture("blue")) as url:
        await traced.ask(url, caller)
        await traced.ask(url, later)
    made = traced.receiver.until(first, has(BY_BUS))
    [work] = [span for span in made if span.name == "qformer.work"]
    reused = traced.receiver.until(second, has({(LLAMA, "llama.visual_wait"): (LLAMA, "llama.request")}))
    assert not [span for span in reused if span.service in (VISION, QFORMER)]
    [wait] = [span for span in reused if span.name == "llama.visual_wait"]
    assert wait.links == ((first, work.id),)


async def test_a_batch_runs_once_and_is_linked_to_all_its_requests(traced: Traced) -> None:
    """Those that come within the wait are one batch."""
    asked = [new_trace() for _ in range(8)]
    colors = ["#%02x4080" % (20 * number) for number in range(8)]
    with hosting(*(picture(color, 300) for color in colors)) as url:
        await asyncio.gather(*(traced.ask(f"{url}/{n}", caller) for n, (_, caller) in enumerate(asked)))
    spans = [span for trace, _ in asked for span in traced.receiver.until(trace, enough_of_a_batch)]
    runs = [span for span in spans if span.name == "vision.forward"]
    batches = {(span.trace, span.id): span for span in spans if span.name == "vision.batch"}
    assert len(batches) == 8
    linked = Counter(link for run in runs for link in run.links)
    assert linked == Counter(list(batches))
    for run in runs:
        assert int(run.attributes["ziya.batch.size"]) == len(run.links)
        assert all(batches[link].start <= run.start for link in run.links)
    assert max(len(run.links) for run in runs) > 1


def enough_of_a_batch(spans: list[Span]) -> bool:
    return {"vision.batch", HTTP, "llama.decode"} <= {span.name for span in spans}


async def test_a_call_over_grpc_is_one_trace_too(traced: Traced) -> None:
    trace, caller = new_trace()
    turn = pb.Turn(role=pb.ROLE_USER, parts=[pb.Part(text="你好")])
    async with grpc.aio.insecure_channel(traced.stack.addresses["grpc"]) as channel:
        call = VisualChatStub(channel).Chat(pb.ChatRequest(turns=[turn]), metadata=(("traceparent", caller),))
        chunks = [chunk async for chunk in call]
    assert chunks[-1].finish_reason
    wanted = {
        (LLAMA, "llama.decode"): (LLAMA, "llama.request"),
        (GATEWAY, "triton.infer"): (GATEWAY, "VisualChat/Chat"),
    }
    found = parents(traced.receiver.until(trace, has(wanted, "VisualChat/Chat")))
    assert {name: found[name] for name in wanted} == wanted


async def test_a_caller_who_does_not_sample_is_followed_and_one_without_a_trace_gets_one(traced: Traced) -> None:
    unsampled, caller = new_trace("00")
    with hosting(picture("yellow"), picture("white")) as url:
        await traced.ask(f"{url}/0", caller)
        request_id = (await traced.ask(f"{url}/1", "")).headers["x-request-id"]
    [line] = [line for line in traced.lines("gateway") if line.get("request_id") == request_id and "face" in line]
    traced.receiver.until(str(line["trace_id"]), has(BY_BUS))
    assert traced.receiver.of(unsampled) == []


async def test_every_process_writes_request_and_trace_into_its_log_and_never_the_prompt(traced: Traced) -> None:
    trace, caller = new_trace()
    with hosting(picture("#123456")) as url:
        request_id = (await traced.ask(url, caller)).headers["x-request-id"]
    traced.receiver.until(trace, has(BY_BUS))
    [ended] = [line for line in traced.lines("gateway") if line.get("request_id") == request_id and "face" in line]
    assert (ended["trace_id"], ended["images"], ended["status"]) == (trace, 1, 200)
    [encoded] = [line for line in traced.lines("vision") if line.get("request_id") == request_id]
    assert encoded["trace_id"] == trace
    for body in traced.receiver.bodies:
        assert "这是什么".encode() not in body
        assert url.encode() not in body


DOCUMENT = Path(__file__).parents[1] / "docs" / "observability.md"
_ROW = re.compile(r"^\| `(ziya_\w+)` \| (counter|gauge|histogram) \| ([\w, ]*) \| .+ \|$", re.MULTILINE)
_TYPE = re.compile(r"^# TYPE (ziya_\w+) (counter|gauge|histogram)$", re.MULTILINE)
_SAMPLE = re.compile(r"^(ziya_\w+?)(?:_bucket)?\{(.*)\} ", re.MULTILINE)
ONLY_WITH_TLS = "_certificate_expires_timestamp_seconds"


def pages(stack: Stack) -> str:
    addresses = [stack.addresses[f"{name}_metrics"] for name in ("gateway", "vision", "qformer", "triton")]
    return "".join(httpx.get(f"http://{address}/metrics", trust_env=False).text for address in addresses)


async def test_the_document_lists_the_metrics_of_the_running_processes_and_no_others(traced: Traced) -> None:
    listed = {name: (kind, {word for word in re.split(r"[, ]+", labels) if word}) for name, kind, labels in rows()}
    assert len(listed) == len(rows())
    with hosting(picture("orange")) as url:
        await traced.ask(url, "")
    text = pages(traced.stack)
    told = {name: kind for name, kind in _TYPE.findall(text) if not name.endswith("_created")}
    assert {name: kind for name, (kind, _) in listed.items() if not name.endswith(ONLY_WITH_TLS)} == told
    checked = set()
    for name, labels in _SAMPLE.findall(text):
        if name in listed:
            assert set(re.findall(r'(\w+)="', labels)) - {"le"} == listed[name][1], name
            checked.add(name)
    assert len(checked) > 20


def rows() -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = _ROW.findall(DOCUMENT.read_text("utf-8"))
    return found


async def test_the_document_lists_the_spans_of_a_request_and_no_others(traced: Traced) -> None:
    (bus, by_bus), (inline, without) = new_trace(), new_trace()
    with hosting(picture("#010203"), picture("#030201")) as url:
        await traced.ask(f"{url}/0", by_bus)
        traced.stack.find("redis-server").suspend()
        try:
            await traced.ask(f"{url}/1", without)
        finally:
            traced.stack.find("redis-server").resume()
    await traced.until_by_bus()
    spans = [*traced.receiver.until(bus, has(BY_BUS)), *traced.receiver.until(inline, has(INLINE))]
    table = DOCUMENT.read_text("utf-8").partition("| span | of |")[2].partition("\n\n")[0]
    listed = set(re.findall(r"`([^`]+)`", table)) - {"VisualChat/Chat"}
    assert {span.name for span in spans} == listed


async def test_top_shows_the_running_stack(traced: Traced) -> None:
    home = {"XDG_STATE_HOME": str(traced.stack.state.parents[1])}
    with hosting(picture("purple"), picture("pink")) as url:
        watching = asyncio.create_task(asyncio.to_thread(ziya, "top", "--json", "--interval", "4s", env=home))
        numbers = 0
        while not watching.done():
            await traced.ask(f"{url}/{numbers % 2}", "")
            numbers += 1
    done = await watching
    assert done.returncode == 0, done.stderr
    frame = json.loads(done.stdout)
    assert [(row["stage"], row["up"]) for row in frame["rows"]] == [
        ("gateway", 1),
        ("vision", 1),
        ("qformer", 1),
        ("llama", 1),
    ]
    traffic = frame["traffic"]
    assert traffic["answered"] == traffic["requests"] > 0
    assert traffic["first_text"]["p50"] <= traffic["first_text"]["p95"] <= traffic["whole_answer"]["p95"]
    assert traffic["bus"]
    assert frame["engine"]["slots"] > 0
    assert frame["rows"][3]["rate"] > 0
    assert frame["bus_backlog"] == 0


def test_top_shows_a_stage_that_is_down(traced: Traced) -> None:
    addresses = [traced.stack.addresses[f"{name}_metrics"] for name in ("gateway", "triton")]
    done = ziya("top", *addresses, "127.0.0.1:1", "--once", "--interval", "100ms")
    assert "no answer from http://127.0.0.1:1/metrics" in done.stdout
    assert "llama" in done.stdout
