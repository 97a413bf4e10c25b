"""Puts questions to one endpoint: at its pace, again when it is worth it, never over the budget, each only once.

A question that the ledger knows is not asked. Equal questions in flight are one. An answer that is no use (no JSON, not
to the schema, empty) is asked for again under another seed, `TRIES` times in all; each try is a request of its own,
with its own digest and place in the ledger, so that a build that is killed between two tries goes on with the second.

Failures besides those of training/llm/reply.py: `bad request`, what the server will not read; and `unavailable`, what
failed `max_attempts` times while others were answered. The latter is not kept: the next run asks it again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from typing import Any, Self, TypeVar, cast

import openai
from openai.types.chat import ChatCompletion

from training.errors import BadConfig, BudgetSpent, EndpointGone
from training.llm.call import Call
from training.llm.endpoint import Endpoint
from training.llm.estimate import Estimate as Estimate
from training.llm.estimate import estimate as estimate
from training.llm.ledger import Ledger
from training.llm.many import many
from training.llm.pace import Clock, Pace, Sleep
from training.llm.question import Answer, Failure, Question
from training.llm.reply import AGAIN, check, read, value
from training.llm.tokens import likely_prompt, prompt_at_most
from training.llm.trouble import Refusal, Trouble, Weather, backoff, diagnose
from ziya.single_flight import SingleFlight

TRIES = 3
# So many bad requests at the start, and nothing else, are a wrong set-up and not wrong questions.
HOPELESS = 10
K = TypeVar("K")


class Asker:
    """Of one endpoint, for `async with`. Several may share a ledger: `budget` bounds what all spend, in dollars."""

    def __init__(
        self,
        endpoint: Endpoint,
        ledger: Ledger,
        budget: float | None = None,
        *,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.endpoint, self.ledger, self.budget = endpoint, ledger, budget
        self._clock, self._sleep = clock, sleep
        self._client = _client(endpoint)
        self._slots = asyncio.Semaphore(endpoint.concurrency)
        self._requests = Pace(endpoint.requests_per_minute, clock, sleep)
        self._tokens = Pace(endpoint.tokens_per_minute, clock, sleep)
        self._flights: SingleFlight[Call] = SingleFlight()
        self._silent_since = clock()
        self._quiet_until = clock()
        self._bad_requests, self._answered = 0, False
        self._aside, self._freed = 0, asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, question: Question) -> Answer | Failure:
        """Raises BudgetSpent before what could exceed the budget, BadConfig (key, model, URL, schema), EndpointGone."""
        for number in range(TRIES):
            call, cached = await self._called(question.again(number))
            if call.reason not in AGAIN:
                break
        return _outcome(call, question, cached)

    def recall(self, question: Question) -> Answer | Failure | None:
        """What the ledger knows, without asking."""
        return recalled(question, self.endpoint, self.ledger)

    def ask_all(
        self, questions: Iterable[tuple[K, Question]] | AsyncIterable[tuple[K, Question]]
    ) -> AsyncGenerator[tuple[K, Answer | Failure], None]:
        """Each with its answer, as they come; twice `concurrency` are held at once. Raises what `ask` raises.

        When the budget is spent, or `questions` itself raises, what is in flight is answered first, if it soon is.
        """
        return many(questions, self.ask, self.recall, 2 * self.endpoint.concurrency)

    async def _called(self, question: Question) -> tuple[Call, bool]:
        digest = question.digest(self.endpoint)
        if kept := self.ledger.get(digest):
            return kept, True
        if question.schema is not None:
            check(question.schema)
        return await self._flights.do(digest, lambda: self._paid(question, digest))

    async def _paid(self, question: Question, digest: str) -> Call:
        """Asked for now. What it may cost stays set aside where nobody can know whether it was paid."""
        if self.budget is None:
            return (await self._attempts(question, digest))[0]
        most = prompt_at_most(question, self.endpoint), question.max_tokens
        await self._set_aside(digest, self.endpoint.price.dollars(*most), self.budget)
        unpaid = False
        try:
            call, unpaid = await self._attempts(question, digest)
            return call
        except BadConfig:
            unpaid = True
            raise
        finally:
            if unpaid:
                self.ledger.free(digest)
            self._aside -= 1
            self._freed.set()

    async def _set_aside(self, digest: str, dollars: float, budget: float) -> None:
        while True:
            try:
                self.ledger.set_aside(digest, dollars, budget)
            except BudgetSpent:
                # What our own questions in flight leave over may be enough.
                if not self._aside:
                    raise
                self._freed.clear()
                await self._freed.wait()
            else:
                self._aside += 1
                return

    async def _attempts(self, question: Question, digest: str) -> tuple[Call, bool]:
        """The call, and whether what was set aside for it is to be freed: nothing was paid, and nothing kept."""
        began, doubtful, attempt = self._clock(), False, 0
        while True:
            found = await self._send(question, digest)
            if isinstance(found, Call):
                return self._kept(digest, found), False
            if isinstance(found, Refusal):
                return self._refused(digest, found), True
            attempt, doubtful = attempt + 1, doubtful or found.paid
            if self._is_over(found, attempt, began):
                return Call("", "", 0, 0, reason="unavailable", detail=found.sentence), not doubtful
            await self._wait(found, attempt)

    async def _send(self, question: Question, digest: str) -> Call | Trouble:
        tokens = likely_prompt(question, self.endpoint) + question.max_tokens
        async with self._slots:
            await self._requests.take()
            await self._tokens.take(tokens)
            await self._until_quiet_ends()
            try:
                async with asyncio.timeout(self.endpoint.timeout):
                    call = read(await self._create(question, digest), question, self.endpoint)
            except (openai.APIError, TimeoutError, ValueError) as error:
                return diagnose(error, self.endpoint)
        self._tokens.give_back(tokens - call.prompt_tokens - call.completion_tokens)
        return call

    async def _create(self, question: Question, digest: str) -> ChatCompletion:
        more: dict[str, Any] = {}
        if question.schema is not None:
            named = {"name": "answer", "schema": question.schema, "strict": True}
            more["response_format"] = {"type": "json_schema", "json_schema": named}
        found: ChatCompletion = await self._client.chat.completions.create(
            model=self.endpoint.model,
            messages=cast(Any, question.messages),
            max_tokens=question.max_tokens,
            temperature=question.temperature,
            seed=question.seed,
            extra_headers={"Idempotency-Key": digest},
            **more,
        )
        return found

    def _kept(self, digest: str, call: Call) -> Call:
        self._answered, self._silent_since = True, self._clock()
        return self.ledger.keep(digest, call, call.dollars(self.endpoint.price))

    def _refused(self, digest: str, refusal: Refusal) -> Call:
        self._silent_since = self._clock()
        call = Call("", "", 0, 0, reason=refusal.reason, detail=refusal.sentence)
        if self._answered or refusal.reason != "bad request":
            return self.ledger.keep(digest, call, 0.0)
        self._bad_requests += 1
        if self._bad_requests >= HOPELESS:
            where = f"{self.endpoint.base_url}, model {self.endpoint.model}"
            raise BadConfig(f"{where}: the first {HOPELESS} questions were all refused: {refusal.sentence}")
        return call

    def _is_over(self, weather: Weather, attempt: int, began: float) -> bool:
        """For this question. Raises EndpointGone when it is for all."""
        if attempt < self.endpoint.max_attempts:
            return False
        now, patience = self._clock(), self.endpoint.patience
        if self._silent_since > began:
            return not weather.busy or now - began > patience
        if now - max(self._silent_since, began) > patience:
            where = f"{self.endpoint.base_url}, model {self.endpoint.model}"
            raise EndpointGone(f"{where}: no answer for {patience:g} s, last: {weather.sentence}")
        return False

    async def _wait(self, weather: Weather, attempt: int) -> None:
        if weather.after is None:
            await self._sleep(backoff(attempt))
        else:
            self._quiet_until = max(self._quiet_until, self._clock() + weather.after)

    async def _until_quiet_ends(self) -> None:
        """A server that says when to come back means all of us; not all at once."""
        while (left := self._quiet_until - self._clock()) > 0:
            await self._sleep(left + random.uniform(0.0, min(1.0, left / 10)))


def recalled(question: Question, endpoint: Endpoint, ledger: Ledger) -> Answer | Failure | None:
    """What the ledger knows of a question to an endpoint."""
    for number in range(TRIES):
        call = ledger.get(question.again(number).digest(endpoint))
        if call is None or call.reason not in AGAIN:
            break
    return _outcome(call, question, cached=True) if call else None


def _client(endpoint: Endpoint) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key=endpoint.api_key or "none",
        base_url=endpoint.base_url,
        timeout=endpoint.timeout,
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=not endpoint.is_here),
    )


def _outcome(call: Call, question: Question, cached: bool) -> Answer | Failure:
    if call.reason:
        return Failure(call.reason, call.detail, call.text)
    found = None if question.schema is None else value(call.text)
    return Answer(call.text, found, call.prompt_tokens, call.completion_tokens, call.finish, cached)
