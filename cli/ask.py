"""`ziya ask`: a question about pictures to a running stack, answered as it comes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import httpx
import typer

from cli.chat import Question, Report, image_url, stream_answer
from cli.state import only_stack
from cli.text import CommandError, say

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def ask(
    words: Annotated[
        list[str], typer.Argument(metavar='IMAGE... "QUESTION"', help="Files or URLs, then the question.")
    ],
    url: Annotated[str | None, typer.Option(help="Address of the stack. [default: the one on this machine]")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Also show times and token counts.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of streaming text.")] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.", min=1)] = None,
    temperature: Annotated[float | None, typer.Option(help="0 always gives the likeliest answer.", min=0.0)] = None,
) -> None:
    """Ask a running stack about one or more pictures; the question comes last, in quotes.

    Example: ziya ask cat.png "这是什么？"
    """
    images, text = _split(words)
    options = {"max_tokens": max_tokens, "temperature": temperature}
    sampling = {name: value for name, value in options.items() if value is not None}
    question = Question([image_url(word) for word in images], text, sampling)
    report = asyncio.run(_ask(url or only_stack().url, question, show=not as_json))
    if as_json:
        say(json.dumps(_as_dict(report), ensure_ascii=False))
    elif stats:
        _show(report)


async def _ask(url: str, question: Question, *, show: bool) -> Report:
    report = Report()
    async with httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(120.0, connect=5.0), trust_env=False) as client:
        async for piece in stream_answer(client, question, report):
            if show:
                say(piece, end="")
    if show:
        say()
    return report


def _split(words: list[str]) -> tuple[list[str], str]:
    *images, question = words
    if Path(question).is_file() or question.startswith(("http://", "https://")):
        raise CommandError(f'there is no question: after {question} put one in quotes, like "What is this?"', 2)
    if not images:
        raise CommandError("there is no picture: put one or more files or URLs before the question", 2)
    if not question.strip():
        raise CommandError("the question is empty", 2)
    return images, question


def _as_dict(report: Report) -> dict[str, object]:
    return {
        "answer": report.answer,
        "finish_reason": report.finish_reason,
        "usage": report.usage,
        "stage_seconds": report.stage_seconds,
        "first_token_seconds": round(report.first_token, 4),
        "total_seconds": round(report.total, 4),
        "tokens_per_second": report.tokens_per_second and round(report.tokens_per_second, 1),
    }


def _show(report: Report) -> None:
    speed = report.tokens_per_second
    say(f"first token  {report.first_token * 1000:.0f} ms")
    say(f"speed        {f'{speed:.1f} tokens/s' if speed else 'one token only'}")
    say(f"total        {report.total * 1000:.0f} ms, ended by {report.finish_reason or 'nothing said'}")
    say("tokens       " + ", ".join(f"{name.removesuffix('_tokens')} {n}" for name, n in report.usage.items()))
    for stage, seconds in report.stage_seconds.items():
        say(f"  {stage.replace('_', ' '):<20} {seconds * 1000:8.1f} ms")
