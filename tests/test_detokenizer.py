"""Text as it is streamed: whole characters, the same as decoding all at once, and never a part of a stop string."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from services.llama.engine.detokenizer import Detokenizer, StopStrings, TokenBytes
from tests.tiny import llama_tokenizer

# without characters that stand for something else in a vocabulary, or name a token
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="▁<"), max_size=60)
KINDS = ("byte fallback", "byte level", "stripping")


@cache
def tokenizer(kind: str) -> Tokenizer:
    if kind == "byte fallback":
        return llama_tokenizer()
    if kind == "stripping":  # as LLaMA's: the space that was put before the text is taken off again
        made = llama_tokenizer()
        made.decoder = decoders.Sequence([made.decoder, decoders.Strip(" ", 1, 0)])
        return made
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": 300, "special_tokens": ["</s>"], "initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.BpeTrainer(**options)
    made.train_from_iterator(["这是一只猫 the cat and the dog 这是一只狗"] * 4, trainer)
    made.add_tokens([AddedToken("<human>", normalized=False)])
    return made


def pieces(kind: str, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(TokenBytes(tokenizer(kind)))
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXT)
@settings(max_examples=150, deadline=None)
def test_pieces_join_to_the_whole(kind: str, text: str) -> None:
    ids = tokenizer(kind).encode(text, add_special_tokens=False).ids
    parts = pieces(kind, ids)
    assert "".join(parts) == tokenizer(kind).decode(ids)
    assert "".join(parts) == (text.removeprefix(" ") if kind == "stripping" else text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_comes_whole(kind: str) -> None:
    text = "鸢尾花🌺é"
    parts = [part for part in pieces(kind, tokenizer(kind).encode(text, add_special_tokens=False).ids) if part]
    assert parts == list(text)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_tokens_give_text_without_lone_surrogates(kind: str, data: st.DataObject) -> None:
    size = tokenizer(kind).get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size + 5), max_size=40))  # beyond: rows that pad the embedding
    "".join(pieces(kind, ids)).encode()


def test_special_tokens_are_silent_and_added_ones_speak() -> None:
    table = TokenBytes(tokenizer("byte fallback"))
    known = tokenizer("byte fallback")
    assert table[2] == b""
    assert table[known.token_to_id("<human>")] == b"<human>"
    assert table[known.get_vocab_size() + 3] == b""


def test_a_broken_character_is_replaced_once_it_cannot_be_completed() -> None:
    first, letter = (tokenizer("byte fallback").token_to_id(piece) for piece in ("<0xE4>", "a"))
    assert pieces("byte fallback", [first, letter, first]) == ["", "\ufffda", "", "\ufffd"]


@given(
    text=st.text("abc", max_size=40),
    cuts=st.lists(st.integers(1, 5), max_size=40),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_a_stop_string_is_cut_wherever_the_pieces_break(text: str, cuts: list[int], stops: list[str]) -> None:
    watch, given_out, rest, stopped = StopStrings(stops), "", text, False
    for cut in [*cuts, len(text)]:
        piece, rest = rest[:cut], rest[cut:]
        out, stopped = watch.push(piece)
        given_out += out
        if stopped:
            break
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert not stopped
        assert given_out + watch.flush() == text
        return
    assert stopped
    assert text.startswith(given_out)
    assert not any(stop in given_out for stop in stops)
    assert any(text[len(given_out) :].startswith(stop) for stop in stops)
