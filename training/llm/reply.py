"""Reads what a server sent: the text, the JSON in it, and every way in which it is no answer.

    refused      the model will not, in the API's own field
    filtered     the server's content filter stopped it
    truncated    longer than max_tokens
    empty        no text
    broken JSON  a schema was asked for, and this is not JSON
    schema       JSON that does not fit the schema

The last three are put to the model again (`AGAIN`); the others would only cost the same once more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for
from openai.types.chat import ChatCompletion
from openai.types.chat.chat_completion import Choice

from training.errors import BadConfig
from training.llm.call import Call
from training.llm.endpoint import Endpoint
from training.llm.question import Question
from training.llm.tokens import likely, likely_prompt

AGAIN = frozenset({"empty", "broken JSON", "schema"})
SHOWN = 200
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_FENCE = re.compile(r"\A\s*```[\w-]*\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)


def check(schema: Mapping[str, Any]) -> None:
    """Before anything is paid for an answer to it. Raises BadConfig for a schema that is none."""
    _validator(json.dumps(schema, sort_keys=True, default=dict))


def read(completion: ChatCompletion, question: Question, endpoint: Endpoint) -> Call:
    """What the ledger keeps of a completion. Raises ValueError for no completion.

    The client checks nothing of what a server sends: a field may be missing, or of any type.
    """
    choice = _choice(completion)
    text, finish = _clean(choice.message.content or ""), str(getattr(choice, "finish_reason", None) or "")
    refusal = getattr(choice.message, "refusal", None)
    reason, detail = _verdict(text, finish, refusal, question)
    return _counted(Call(text, finish, 0, 0, reason=reason, detail=_clean(detail)), completion, question, endpoint)


def value(text: str) -> Any:
    """The JSON that a text is, as it stands or in one fence. Raises ValueError."""
    fenced = _FENCE.match(text)
    try:
        found = json.loads(fenced.group(1) if fenced else text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if _HALF.search(text):
        json.dumps(found, ensure_ascii=False).encode()  # half a character, escaped, could be written nowhere
    return found


def _verdict(text: str, finish: str, refusal: str | None, question: Question) -> tuple[str, str]:
    if refusal:
        return "refused", str(refusal)[:SHOWN]
    if finish == "content_filter":
        return "filtered", "the server's content filter stopped the answer"
    if finish == "length":
        return "truncated", f"no end after {question.max_tokens} tokens: …{text[-SHOWN:]}"
    if not text.strip():
        return "empty", "the model said nothing"
    return ("", "") if question.schema is None else _fits(text, question.schema)


def _fits(text: str, schema: Mapping[str, Any]) -> tuple[str, str]:
    try:
        found = value(text)
    except ValueError as error:
        return "broken JSON", f"{error}: {text[:SHOWN]}"
    wrong = next(_validator(json.dumps(schema, sort_keys=True, default=dict)).iter_errors(found), None)
    return ("schema", f"{wrong.json_path}: {wrong.message[:SHOWN]}") if wrong else ("", "")


@lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    known = json.loads(schema)
    kind = validator_for(known)
    try:
        kind.check_schema(known)
    except SchemaError as error:
        raise BadConfig(f"not a JSON schema: {error.message}") from error
    return kind(known)


def _choice(completion: ChatCompletion) -> Choice:
    choices = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    content = getattr(getattr(choice, "message", None), "content", False)
    if not isinstance(choice, Choice) or not isinstance(content, str | None):
        raise ValueError(f"the server sent no completion: {str(completion)[:SHOWN]}")
    return choice


def _clean(text: str) -> str:
    """Without half characters, which no file takes."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _counted(call: Call, completion: ChatCompletion, question: Question, endpoint: Endpoint) -> Call:
    counts = [getattr(completion.usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    prompt, answered = (count if isinstance(count, int) and count >= 0 else None for count in counts)
    if prompt is None or answered is None:
        prompt, answered = likely_prompt(question, endpoint), likely(call.text)
        return replace(call, prompt_tokens=prompt, completion_tokens=answered, estimated=True)
    return replace(call, prompt_tokens=prompt, completion_tokens=answered)
