"""Tokens to text as they come, in whole characters, at a cost that does not grow with the answer.

Each token stands for fixed bytes (a piece of text, one byte of a fallback, or nothing for a special token),
looked up once for each tokenizer; an incremental UTF-8 decoder holds back the beginning of a character until its
rest arrives. Stop strings are watched on the text: what may be the beginning of one is held back, too, so that
no part of a stop string is ever streamed.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """The bytes of each token of a byte-level or SentencePiece-like tokenizer; found on first use, then remembered."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = {number for number, token in added.items() if token.special}
        self._added = {number: token.content for number, token in added.items()}
        decoders = list(_decoders(json.loads(tokenizer.to_str()).get("decoder") or {}))
        self._byte_level = _byte_level_alphabet() if any(d["type"] == "ByteLevel" for d in decoders) else None
        self.strips_first_space = any(
            (d["type"] == "Strip" and d["content"] == " " and d["start"]) or d["type"] == "Metaspace" for d in decoders
        )
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token: int) -> bytes:
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._find(token)
        return found

    def _find(self, token: int) -> bytes:
        piece = self._tokenizer.id_to_token(token)
        if piece is None or token in self._special:  # rows that pad the embedding have no piece
            return b""
        if token in self._added:
            return self._added[token].encode()
        if self._byte_level is not None:
            return bytes(self._byte_level[character] for character in piece if character in self._byte_level)
        if match := _BYTE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return str(piece).replace("▁", " ").encode()


class Detokenizer:
    """One answer's text. `push` gives the characters that a token completes; `flush` what is left at the end."""

    def __init__(self, table: TokenBytes) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = table.strips_first_space

    def push(self, token: int) -> str:
        data = self._table[token]
        if self._strip and data:
            self._strip = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class StopStrings:
    """Cuts a stream of text at the first of some strings, without ever giving out a part of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """What may be given out, and whether a stop string has come; it is not given out, nor what follows."""
        if not self._stops:
            return text, False
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[len(text) - length :]):
            return length
    return 0


def _decoders(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder.get("type") == "Sequence":
        for part in decoder["decoders"]:
            yield from _decoders(part)
    elif decoder:
        yield decoder


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself where printable, else the next free character from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + number): byte for number, byte in enumerate(rest)}
