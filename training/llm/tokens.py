"""How many tokens a question is, before any server has counted them.

Nobody but the server has the model's tokenizer, so there are two figures. *Likely*: four Latin characters a token, and
one for every other character, which today's bilingual vocabularies come close to. *At most*: a token for every byte of
UTF-8, since a byte-level vocabulary cannot take more; the hard budget counts with this one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from training.llm.endpoint import Endpoint
from training.llm.question import Question

LATIN_CHARACTERS = 4
# What a chat template puts around a message, and around the whole.
MESSAGE_TOKENS, DIALOGUE_TOKENS = 8, 16


def likely(text: str) -> int:
    """Of a text. An estimate."""
    latin = len(text.encode("ascii", "ignore"))
    return -(-latin // LATIN_CHARACTERS) + len(text) - latin


def likely_prompt(question: Question, endpoint: Endpoint) -> int:
    """Of a whole question. An estimate."""
    return sum(map(likely, _texts(question))) + _rest(question, endpoint)


def prompt_at_most(question: Question, endpoint: Endpoint) -> int:
    """What no server can count more of, as long as an image is no more than `endpoint.image_tokens`."""
    return sum(len(text.encode("utf-8", "replace")) for text in _texts(question)) + _rest(question, endpoint)


def _texts(question: Question) -> Iterator[str]:
    if question.schema is not None:
        yield json.dumps(question.schema, ensure_ascii=False, default=dict)
    for message in question.messages:
        content = message.get("content")
        if isinstance(content, str):
            yield content
        for part in content if isinstance(content, list | tuple) else ():
            yield str(part.get("text", ""))


def _rest(question: Question, endpoint: Endpoint) -> int:
    images = sum(map(_images, question.messages))
    return DIALOGUE_TOKENS + MESSAGE_TOKENS * len(question.messages) + images * endpoint.image_tokens


def _images(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return 0
    return sum(part.get("type") == "image_url" for part in content)
