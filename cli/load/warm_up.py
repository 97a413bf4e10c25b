"""What comes before the first measured request: is anybody there, how many tokens is a word, is everything warm.

Prompts are made of words, so their lengths in tokens depend on the server's tokenizer. Two questions of different
length, of whose answers one token is wanted, tell tokens per word from the server's own count.
"""

from __future__ import annotations

from cli.load.request import Answer, Caller, Clock, Failed, Request
from cli.load.run import Bounds, Run
from cli.load.workload import WORDS, Workload
from cli.text import CommandError
from ziya.prompt import Turn

FEW, MANY = 8, 40


async def tokens_per_word(caller: Caller, clock: Clock) -> float | None:
    """None when the server counts no tokens. Raises CommandError when it does not answer."""
    counted = []
    for words in (FEW, MANY):
        request = Request(0, (Turn("user", " ".join(WORDS[:words])),), max_tokens=1)
        answer = Answer(request, clock())
        try:
            await caller.ask(request, answer)
        except Failed as failure:
            # One token may be the end, or half a character: that is no text, but an answer all the same.
            if failure.kind != "empty":
                raise CommandError(f"the first question was not answered ({failure.kind}): {failure}") from failure
        counted.append(answer.usage.prompt if answer.usage else 0)
    slope = (counted[1] - counted[0]) / (MANY - FEW)
    return slope if slope > 0 else None


async def warm_up(
    caller: Caller, workload: Workload, count: int, concurrency: int, timeout: float, clock: Clock
) -> int:
    """Sends `count` requests of the workload; how many were answered. Raises CommandError when none was."""
    if not count:
        return 0
    run = Run(caller, workload, Bounds(count, None, timeout), clock)
    await run.closed(min(count, concurrency))
    failures = [answer.failure for answer in run.answers if answer.failure]
    if len(failures) == count:
        raise CommandError(f"no request of the warm-up was answered ({failures[0].kind}): {failures[0]}")
    return count - len(failures)
