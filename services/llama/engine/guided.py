"""JSON of a schema: which tokens may come next, by llguidance's parser over the checkpoint's own tokens.

A schema is compiled once and kept for the next request with the same. What the grammar sees are the bytes of
tokens, those that the detokenizer gives out, so it works for any tokenizer. White space between parts of the JSON text
is one space, or a line break with indentation: a model could otherwise go on with white space for ever.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from tokenizers import Tokenizer

from services.llama.engine.detokenizer import TokenBytes
from ziya.errors import InvalidRequest

KEPT = 64
WHITE_SPACE = r" |\n {0,20}"
MARK = "\x02"
# What several patterns allow together is found in a time that doubles with each: 16 take half a second, 20 take 13.
MOST_PATTERNS = 8


class Guide:
    """Follows one answer through its grammar. For one thread at a time."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self.error = ""

    def mask(self) -> npt.NDArray[np.uint8]:
        """A bit a token, lowest first: whether it may come next; once the text is complete, the end token may."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._look()
        return mask

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._look()

    def _look(self) -> None:
        if not self.error and self._matcher.is_error():
            self.error = f"the JSON schema cannot be followed: {_line(self._matcher.get_error())}"


class Grammars:
    """Compiles schemas for a model with `vocabulary` logits, some of which may stand for no token. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, table: TokenBytes, vocabulary: int, eos: tuple[int, ...]) -> None:
        self._tokenizer, self._table = tokenizer, table
        self._vocabulary, self._eos = vocabulary, eos
        self._lock = threading.Lock()
        self._tokens: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def guide(self, schema: str) -> Guide:
        """A new guide at the beginning. Raises InvalidRequest, naming what is wrong with the schema."""
        with self._lock:
            matcher = self._compiled.get(schema)
        if matcher is None:
            matcher = self._compile(schema)
        with self._lock:
            self._compiled[schema] = matcher
            self._compiled.move_to_end(schema)
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            return Guide(matcher.deep_copy())

    def _compile(self, schema: str) -> LLMatcher:
        if not self._eos:
            raise InvalidRequest("json_schema: this model has no end token, so a JSON text would never end")
        _bound(schema)
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": WHITE_SPACE})
        except ValueError as error:
            raise InvalidRequest(f"json_schema: {_line(str(error))}") from None
        matcher = LLMatcher(self._words(), grammar, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first takes longest, and would be the engine's time
        if matcher.is_error():
            raise InvalidRequest(f"json_schema: {_line(matcher.get_error())}")
        return matcher

    def _words(self) -> LLTokenizer:
        with self._lock:
            if self._tokens is None:
                words = cast(TokenizerWrapper, _Words(self._tokenizer, self._table, self._vocabulary, self._eos[0]))
                self._tokens = LLTokenizer(words, n_vocab=self._vocabulary, eos_token=list(self._eos))
            return self._tokens


class _Words:
    """The tokens in the form that LLTokenizer asks for; the attributes' names are its."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, table: TokenBytes, vocabulary: int, eos: int) -> None:
        self.eos_token_id = eos
        self.tokens = [table[token] for token in range(vocabulary)]
        self.special_token_ids = [token for token, data in enumerate(self.tokens) if not data]
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        """As the text would be written in the middle of an answer, where no tokenizer puts a space before it."""
        ids = self._encode(MARK + text, add_special_tokens=False).ids
        before = b""
        while not before.endswith(MARK.encode()):
            before += self.tokens[ids.pop(0)]
        return list(ids)


def _bound(schema: str) -> None:
    """Refuses what is no JSON object, and what would take the compiler minutes; the rest it bounds by itself."""
    try:
        value = json.loads(schema)
    except (ValueError, RecursionError):
        raise InvalidRequest("json_schema is not valid JSON") from None
    if not isinstance(value, dict):
        raise InvalidRequest("json_schema must be a JSON object")
    patterns, joined = 0, False
    todo: list[Any] = [value]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            patterns += sum(name in node for name in ("pattern", "format"))
            patterns += len(held) if isinstance(held := node.get("patternProperties"), dict) else 0
            joined = joined or "allOf" in node or ("$ref" in node and len(node) > 1)
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)
    if joined and patterns > MOST_PATTERNS:
        raise InvalidRequest(
            f"json_schema: with allOf, or with other keywords beside a $ref, at most {MOST_PATTERNS} patterns and "
            f"formats can be followed, not {patterns}"
        )


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
