"""What callers make of a server's answer, whole or broken, over real sockets with a clock that the server moves."""

from __future__ import annotations

import asyncio
import base64
import socket
from contextlib import suppress

import pytest

from cli.load.measures import summarise
from cli.load.openai_caller import OpenAICaller
from cli.load.request import Answer, Failed, Options, Picture, Request, Usage
from cli.load.run import Bounds, Run
from tests.load import plain, question
from tests.openai_server import (
    ANSWER,
    DONE,
    ROLE,
    At,
    Cut,
    ManualClock,
    OpenAIServer,
    Raw,
    Script,
    error,
    event,
    finish,
    openai_server,
    text,
    usage,
)
from ziya.prompt import Turn


async def asked(server: OpenAIServer, *, clock: ManualClock | None = None, request: Request | None = None) -> Answer:
    """One answer, or the Failed of it."""
    clock = clock or ManualClock()
    caller = OpenAICaller(server.url, "m", Options(), clock)
    answer = Answer(request or question(), intended=clock.now)
    try:
        await caller.ask(answer.request, answer)
    finally:
        await caller.close()
    return answer


async def test_each_piece_has_the_time_at_which_it_came() -> None:
    clock = ManualClock()
    steps = (At(2.0), ROLE, At(2.5), text("一只"), At(2.75), text("猫"), At(4.0), finish(), usage(7, 5), At(6.0), DONE)
    async with openai_server(Script(steps), clock=clock) as server:
        answer = await asked(server, clock=clock)
    assert answer.pieces == [2.5, 2.75]
    assert (answer.ttft, answer.gaps, answer.e2e) == (2.5, [0.25], 6.0)
    assert answer.tpot == 0.25 / 4  # two pieces that were five tokens
    assert (answer.text, answer.finish_reason, answer.usage) == ("一只猫", "stop", Usage(7, 5))


async def test_the_request_is_what_such_servers_read() -> None:
    picture = Picture(b"jpeg bytes", "jpeg")
    turns = (Turn("user", "What?", (picture,)), Turn("assistant", "A cat."), Turn("user", "Which colour?"))
    options = Options(temperature=0.5, ignore_eos=True, extra={"top_k": 3})
    async with openai_server() as server:
        caller = OpenAICaller(server.url, "the-model", options, ManualClock(), "a-key")
        request = Request(0, turns, max_tokens=9)
        await caller.ask(request, Answer(request, 0.0))
        await caller.close()
    (head,), (body,) = server.heads, server.bodies
    assert head["line"] == "POST /v1/chat/completions HTTP/1.1"
    assert head["authorization"] == "Bearer a-key"
    url = f"data:image/jpeg;base64,{base64.b64encode(b'jpeg bytes').decode()}"
    shown = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    assert body == {
        "model": "the-model",
        "messages": [
            {"role": "user", "content": shown},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": "Which colour?"},
        ],
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "ignore_eos": True,
        "top_k": 3,
    }


@pytest.mark.parametrize("framing", ["chunked", "counted", "close"])
@pytest.mark.parametrize("split", [False, True])
async def test_bytes_may_be_cut_and_ended_in_any_way(framing: str, split: bool) -> None:
    crlf = [Raw(step.data.replace(b"\n", b"\r\n")) for step in ANSWER]
    steps = (Raw(b": still working\r\n\r\n"), *crlf[:3], Raw(b": and on\n\n"), *crlf[3:])
    async with openai_server(Script(steps, framing=framing, split=split)) as server:
        answer = await asked(server)
    assert (answer.text, len(answer.pieces), answer.usage) == ("a b c", 3, Usage(9, 3))


async def test_thoughts_are_tokens_that_came_but_no_text_of_the_answer() -> None:
    thought = event({"choices": [{"delta": {"reasoning_content": "hm"}, "finish_reason": None}]})
    async with openai_server(Script((ROLE, thought, text("yes"), finish()))) as server:
        answer = await asked(server)
    assert (len(answer.pieces), answer.text, answer.tokens) == (2, "yes", 2)


async def test_cached_and_image_tokens_and_our_stages_are_read() -> None:
    stages = {"vision": 0.25, "decode": 0.5}
    last = event(
        {"choices": [], "usage": {"prompt_tokens": 45, "completion_tokens": 1}, "ziya": {"stage_seconds": stages}}
    )
    async with openai_server(
        Script((text("a"), finish(), usage(45, 1, cached_tokens=32, image_tokens=30))),
        Script((text("a"), finish(), last)),
    ) as server:
        first, second = await asked(server), await asked(server)
    assert first.usage == Usage(45, 1, cached=32, image=30)
    assert second.stages == stages


BROKEN = {
    "http 429": (error(429, "too many requests in flight"), "too many requests in flight"),
    "http 503": (Script((Raw(b"<html>no</html>"),), 503, "text/html"), "<html>no</html>"),
    "broken": (Script((ROLE, text("a"), Cut())), "broke in the middle"),
    "broken, counted": (Script((text("a"), Cut(), text("b")), framing="counted"), "broke in the middle"),
    "broken, at once": (Script((ROLE, text("a"), text("b"))), "without a finish reason"),
    "broken, done": (Script((text("a"), DONE)), "without a finish reason"),
    "broken, closed": (Script((text("a"),), framing="close"), "without a finish reason"),
    "error in stream": (Script((text("a"), event({"error": {"message": "went wrong"}}), DONE)), "went wrong"),
    "error in stream, reason": (Script((text("a"), finish("abort"), DONE)), "'abort'"),
    "malformed": (Script((text("a"), Raw(b"data: {nonsense\n\n"), finish(), DONE)), "nonsense"),
    "malformed, shape": (Script((event([1]), finish(), DONE)), "not OpenAI's"),
    "malformed, kind": (Script((Raw(b"{}"),), kind="application/json", framing="counted"), "application/json"),
    "empty": (Script((ROLE, finish(), usage(3, 1), DONE)), "without any text"),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_every_kind_of_failure_is_one_and_never_a_success(case: str) -> None:
    script, words = BROKEN[case]
    async with openai_server(script) as server:
        clock = ManualClock()
        caller = OpenAICaller(server.url, "m", Options(), clock)
        run = Run(caller, plain(), Bounds(1, None, 30.0), clock, clock.sleep)
        await run.closed(1)
        await caller.close()
    (answer,) = run.answers
    assert answer.failure is not None
    assert answer.failure.kind == case.partition(",")[0]
    assert words in str(answer.failure)
    summary = summarise(run.answers, 1.0)
    assert (summary.succeeded, summary.failed, summary.tokens.completion) == (0, 1, 0)
    assert (summary.ttft, summary.e2e, summary.requests_per_second) == (None, None, 0.0)


async def test_nobody_listens() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        caller = OpenAICaller(f"http://127.0.0.1:{closed.getsockname()[1]}/v1", "m", Options(), ManualClock())
        with pytest.raises(Failed, match="cannot connect to 127") as failure:
            await caller.ask(question(), Answer(question(), 0.0))
    assert failure.value.kind == "connect"


async def test_something_else_listens() -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        caller = OpenAICaller(f"http://127.0.0.1:{port}/v1", "m", Options(), ManualClock())
        with pytest.raises(Failed, match="220 mail") as failure:
            await caller.ask(question(), Answer(question(), 0.0))
    assert failure.value.kind == "malformed"


async def test_a_connection_is_used_again_unless_its_answer_broke() -> None:
    whole, half = Script(ANSWER), Script((text("a"), event({"error": "bad"}), text("b"), DONE))
    scripts = [whole, error(429, "busy"), whole, Script((text("a"), Cut())), whole, half, whole, whole]
    async with openai_server(*scripts) as server:
        caller = OpenAICaller(server.url, "m", Options(), ManualClock())
        connections, complete = [], 0
        for _ in scripts:
            with suppress(Failed):
                await caller.ask(question(), Answer(question(), 0.0))
                complete += 1
            connections.append(server.connections)
        await caller.close()
    assert connections == [1, 1, 1, 1, 2, 2, 3, 3]
    assert complete == 5
