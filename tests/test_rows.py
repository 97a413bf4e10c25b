"""Pieces equal what serving reads, only answers are learnt, and a row of many pieces trains like each alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from tests.tiny import llama_config, llama_tokenizer
from training.data.batch import TEXT, Rows
from training.data.record import Conversation
from training.data.rows import Encoder, Piece, Placed, attention, bucketed, evenly_packed, layout, packed, useful_share
from training.errors import BadSample
from training.recipe import Text
from ziya.checkpoint import PromptTemplate
from ziya.prompt import Turn, render, tokenize

QUERIES = 3
TEMPLATE = PromptTemplate()
ZIYA_TINY = Path(__file__).parents[1] / "checkpoints" / "ziya-tiny" / "llama" / "tokenizer.json"
LIMITS = Text(row_positions=400, instruction_tokens=60, answer_tokens=60)


def talk(*texts: str | tuple[str, tuple[int, ...]]) -> Conversation:
    """Texts of the user and the assistant in turn; a text with images is a pair."""
    turns = []
    for number, text in enumerate(texts):
        words, images = text if isinstance(text, tuple) else (text, ())
        turns.append(Turn(("user", "assistant")[number % 2], words, images))
    return Conversation(tuple(turns))


CONVERSATIONS = [
    talk(("What is this?", (0,)), "a cat."),
    talk(("这是什么？", (0, 1)), "一只猫和一只狗"),
    talk("hello", "hi there"),
    talk(("图中的是什么", (0,)), "猫", "in english?", "the cat", "and <bot>: <human>:x</s>", "no </s> it is"),
    talk(
        "hi",
        "send a picture",
        ("这个呢？", (1,)),
        "a 🐱",
        ("and\nthis", (0, 2)),
        "两只狗\n  .",
        "why",
        ": ) .",
        "ok",
        "bye",
    ),
    talk(("", (0,)), "an eagle", "  and then  ", "说：“你好”"),
]


@cache
def tokenizer(name: str) -> Tokenizer:
    if name == "ziya-tiny":
        return Tokenizer.from_file(str(ZIYA_TINY))
    made = llama_tokenizer()
    if name in {"sentencepiece", "slow"}:  # LLaMA's own habit: a space before every text between two added tokens
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if name == "slow":  # and of the slow one: an added token swallows the white space around it
        raw = json.loads(made.to_str())
        for token in raw["added_tokens"][-2:]:
            token.update(lstrip=True, rstrip=True)
        made = Tokenizer.from_str(json.dumps(raw))
    if name == "merging":  # the colon that ends a prompt and a bracket that begins an answer become one token
        raw = json.loads(made.to_str())
        for unused, piece in (("q", "("), ("z", ":(")):
            raw["model"]["vocab"][piece] = raw["model"]["vocab"].pop(unused)
        raw["model"]["merges"].append([":", "("])
        made = Tokenizer.from_str(json.dumps(raw))
    return made


def encoder(name: str = "tiny", limits: Text = LIMITS, template: PromptTemplate = TEMPLATE) -> Encoder:
    return Encoder(tokenizer(name), template, QUERIES, limits)


def number_of(name: str, token: str) -> int:
    number = tokenizer(name).token_to_id(token)
    assert number is not None
    return number


def served(name: str, turns: Sequence[Turn[int]], template: PromptTemplate = TEMPLATE) -> tuple[list[int], list[int]]:
    """Ids and visual numbers of the prompt that the engine would be given for `turns`."""
    prompt = render(turns, template)
    ids, visual = list[int](), list[int]()
    for number, text in enumerate(tokenize(tokenizer(name), prompt.texts)):
        if number:
            image = prompt.images[number - 1]
            ids += [0] * QUERIES
            visual += [image * QUERIES + query for query in range(QUERIES)]
        ids += text
        visual += [TEXT] * len(text)
    return ids, visual


@pytest.mark.parametrize("template", [TEMPLATE, PromptTemplate("USER: ", " ASSISTANT:", "</s>")])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", ["tiny", "ziya-tiny", "sentencepiece", "slow"])
def test_before_every_answer_stands_what_serving_reads(
    name: str, conversation: Conversation, template: PromptTemplate
) -> None:
    turns = conversation.turns
    piece = encoder(name, template=template).piece(conversation)
    learnt = [False] * len(piece.ids)
    for number in range(1, len(turns), 2):
        ids, visual = served(name, turns[:number], template)
        assert piece.ids[: len(ids)] == ids
        assert piece.visual[: len(ids)] == visual
        end = piece.ids.index(number_of(name, "</s>"), len(ids)) + 1
        learnt[len(ids) : end] = [True] * (end - len(ids))
    assert piece.learnt == learnt
    assert learnt[-1]
    # The last answer, too, is what serving would read of it in the next question's history.
    ids, visual = served(name, (*turns, Turn("user", "next")), template)
    assert (piece.ids, piece.visual) == (ids[: len(piece.ids)], visual[: len(piece.ids)])


def test_a_piece_worked_by_hand() -> None:
    piece = encoder().piece(talk(("a", (1, 0)), "bc", "d", "e"))
    human, bot, end, newline = "<human>", "<bot>", "</s>", "<0x0A>"
    words = [human, ":", "a", newline, bot, ":", "b", "c", end, human, ":", "d", newline, bot, ":", "e", end]
    assert piece.ids == [0] * 6 + [number_of("tiny", word) for word in words]
    assert piece.visual == [3, 4, 5, 0, 1, 2] + [TEXT] * len(words)
    marks = "...... ......xxx ......xx".replace(" ", "")
    assert piece.learnt == [mark == "x" for mark in marks]


def test_an_answer_that_merges_with_the_prompt_is_learnt_only_after_what_serving_reads() -> None:
    name, end = "merging", number_of("merging", "</s>")
    turns = talk("a", "(b", "c", "(d").turns
    piece = encoder(name).piece(Conversation(turns))
    last, _ = served(name, turns[:3])
    assert piece.ids[: len(last)] == last
    assert tokenizer(name).decode(piece.ids[len(last) :]) == "(d"
    assert piece.learnt == [False] * len(last) + [True] * 3
    alone = encoder(name).piece(Conversation(turns[:2]))
    first, _ = served(name, turns[:1])
    # As history the first answer is other tokens than the model says, so it is learnt only where it is the last.
    assert alone.ids == [*first, *(number_of(name, letter) for letter in "(b"), end]
    assert piece.ids[: len(first)] != first


@pytest.mark.parametrize("name", ["tiny", "ziya-tiny", "sentencepiece"])
@pytest.mark.parametrize("word", ["the cat ", "一只猫", "🐱 龘 "])
def test_a_long_instruction_keeps_its_end_and_the_markers(name: str, word: str) -> None:
    limits = replace(LIMITS, instruction_tokens=10)
    question = f"begin {word * 20}<bot> end?"
    piece = encoder(name, limits).piece(talk((question, (0,)), "yes"))
    text = tokenizer(name).decode(piece.ids[QUERIES:], skip_special_tokens=False).strip()
    assert text.startswith("<human>")
    kept = text.removeprefix("<human>").split("\n")[0].lstrip(" :")
    # The user's marker stays harmless; what is left is the end of the text, as much as fits.
    assert question.replace("<bot>", "＜bot>").endswith(kept)
    assert 7 <= len(tokenizer(name).encode(kept, add_special_tokens=False).ids) <= 11
    served_ids, _ = served(name, talk((kept, (0,)), "yes").turns[:1])
    assert piece.ids[: len(served_ids)] == served_ids


@pytest.mark.parametrize("name", ["tiny", "ziya-tiny", "sentencepiece"])
def test_a_long_answer_keeps_its_beginning_and_does_not_learn_to_stop(name: str) -> None:
    limits = replace(LIMITS, answer_tokens=8)
    long = "一只狗 the cat 什么图 and " * 9
    piece = encoder(name, limits).piece(talk("q", long, "why", long))
    end = number_of(name, "</s>")
    learnt = [token for token, is_learnt in zip(piece.ids, piece.learnt, strict=True) if is_learnt]
    answer = learnt[: len(learnt) // 2]
    assert learnt == answer * 2
    assert end not in learnt
    assert piece.ids.count(end) == 1  # between the turns, as in serving's history
    assert long.startswith(tokenizer(name).decode(answer).strip())
    assert 6 <= len(answer) <= 8


def test_what_does_not_fit_is_a_bad_sample_by_name() -> None:
    with pytest.raises(BadSample, match=r"shard-1:2: too long: 12 positions, a row has 11"):
        encoder(limits=replace(LIMITS, row_positions=11)).piece(talk(("a", (0,)), "bc"), "shard-1:2")
    assert len(encoder(limits=replace(LIMITS, row_positions=12)).piece(talk(("a", (0,)), "bc")).ids) == 12
    with pytest.raises(BadSample, match="too long: no part of an answer fits in 2 tokens"):
        encoder(limits=replace(LIMITS, answer_tokens=2)).piece(talk("a", "🐱"))


def pieces(lengths: Sequence[int]) -> list[Placed]:
    """Pieces of which every position can be told: sample n has ids n * 1000, n * 1000 + 1, … and one image."""
    made = []
    for number, length in enumerate(lengths):
        visual = [query if query < QUERIES else TEXT for query in range(length)]
        ids = [number * 1000 + at for at in range(length)]
        made.append((number, number % 3, number, Piece(ids, visual, [at % 2 == 1 for at in range(length)])))
    return made


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=30), st.integers(40, 90), st.sampled_from(["pad", "bucket", "pack"]))
def test_every_piece_stands_in_the_rows_exactly_once(lengths: list[int], room: int, how: str) -> None:
    text = Text(layout=how, row_positions=room)  # type: ignore[arg-type]  # drawn from its three values
    given_pieces = pieces(lengths)
    rows = layout(given_pieces, text, QUERIES)
    found: dict[int, int] = {}
    height, width = rows.ids_RT.shape
    assert width <= room
    assert how == "pack" or height == len(lengths)
    for row in range(height):
        for segment in range(1, int(rows.segment_RT[row].max()) + 1):
            place = (rows.segment_RT[row] == segment).nonzero()[:, 0]
            sample = int(rows.sample_RT[row, place[0]])
            piece = given_pieces[sample][3]
            found[sample] = found.get(sample, 0) + 1
            assert place.tolist() == list(range(int(place[0]), int(place[0]) + len(piece.ids)))
            assert rows.ids_RT[row, place].tolist() == piece.ids
            assert rows.learnt_RT[row, place].tolist() == piece.learnt
            assert rows.position_RT[row, place].tolist() == list(range(len(piece.ids)))
            shown = [TEXT if query == TEXT else sample * QUERIES + query for query in piece.visual]
            assert rows.visual_RT[row, place].tolist() == shown
            assert set(rows.source_RT[row, place].tolist()) == {sample % 3}
            assert set(rows.sample_RT[row, place].tolist()) == {sample}
    assert found == dict.fromkeys(range(len(lengths)), 1)
    padding = rows.segment_RT == 0
    assert int((~padding).sum()) == sum(lengths)
    assert not rows.learnt_RT[padding].any()
    assert bool((rows.visual_RT[padding] == TEXT).all())
    assert useful_share(rows) == (sum(lengths) / padding.numel() if padding.numel() else 1.0)


def test_rows_are_filled_from_the_longest_and_trimmed() -> None:
    assert packed([3, 7, 5, 4, 1], 10) == [[1, 0], [2, 3, 4]]
    text = Text(layout="pack", row_positions=64)
    assert layout(pieces([3, 7, 5, 4, 1]), text, QUERIES).ids_RT.shape == (1, 24)
    assert layout(pieces([60]), replace(text, row_positions=61), QUERIES).ids_RT.shape == (1, 61)
    assert layout([], text, QUERIES).ids_RT.shape == (0, 0)
    with pytest.raises(ValueError, match="a piece of 65 positions does not fit in a row of 64"):
        layout(pieces([65]), text, QUERIES)


def test_rows_are_no_wider_than_their_number_asks_for() -> None:
    lengths = [50] * 10  # two rows of 400 would be 400 and 100; evenly they are 250 and 250
    assert [sum(lengths[number] for number in row) for row in packed(lengths, 400)] == [400, 100]
    assert layout(pieces(lengths), Text(layout="pack", row_positions=400), QUERIES).ids_RT.shape == (2, 256)


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=40), st.integers(40, 200))
def test_even_rows_hold_all_and_are_as_few(lengths: list[int], room: int) -> None:
    rows = evenly_packed(lengths, room)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert len(rows) == len(packed(lengths, room))
    assert all(sum(lengths[number] for number in row) <= room for row in rows)


def test_the_same_pieces_make_the_same_rows() -> None:
    lengths = [9, 3, 9, 9, 4, 3, 11, 4]
    one, two = (layout(pieces(lengths), Text(row_positions=20), QUERIES) for _ in range(2))
    assert one.until_RT is two.until_RT is None
    names = [field.name for field in fields(Rows) if field.name != "until_RT"]
    assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)
    talks = [encoder("ziya-tiny").piece(conversation) for conversation in CONVERSATIONS]
    assert talks == [encoder("ziya-tiny").piece(conversation) for conversation in CONVERSATIONS]


def test_buckets_are_equal_and_hold_like_lengths() -> None:
    assert bucketed([5, 1, 5, 2, 9, 1], 3) == [[1, 5], [3, 0], [2, 4]]
    assert bucketed([], 2) == [[], []]
    with pytest.raises(ValueError, match="5 samples cannot be cut in 2 equal parts"):
        bucketed([1, 2, 3, 4, 5], 2)


def test_the_mask_worked_by_hand() -> None:
    rows = layout(pieces([2, 1]), Text(layout="pack", row_positions=4), QUERIES)
    mask = attention(rows, torch.float32)
    low = torch.finfo(torch.float32).min
    assert mask.tolist() == [[[[0, low, low, low], [0, 0, low, low], [low, low, 0, low], [low, low, low, 0]]]]
    assert attention(rows, torch.bfloat16).dtype == torch.bfloat16


def token_losses_alone(model: LlamaForCausalLM, piece: Piece, embeds_TD: Tensor) -> list[float]:
    """One learnt token after another by transformers' own loss."""
    losses = []
    for at, is_learnt in enumerate(piece.learnt):
        if is_learnt:
            labels = torch.full((1, len(piece.ids)), -100)
            labels[0, at] = piece.ids[at]
            losses.append(float(model(inputs_embeds=embeds_TD[None], labels=labels).loss))
    return losses


@pytest.mark.parametrize("how", ["pack", "pad"])
def test_every_token_loss_in_a_row_equals_the_conversations_own(how: str) -> None:
    torch.manual_seed(0)
    config = llama_config(tokenizer("tiny").get_vocab_size())
    config._attn_implementation = "sdpa"
    model = LlamaForCausalLM(config).eval()
    made, image = list[Placed](), 0
    for number, conversation in enumerate(CONVERSATIONS):
        made.append((number, 0, image, encoder().piece(conversation)))
        image += 1 + max((shown for turn in conversation.turns for shown in turn.images), default=-1)
    rows = layout(made, Text(layout=how, row_positions=400), QUERIES)  # type: ignore[arg-type]
    seen_ND = torch.randn(image * QUERIES, config.hidden_size) * 0.5

    def embed(ids: Tensor, visual: Tensor) -> Tensor:
        return torch.where((visual >= 0)[..., None], seen_ND[visual.clamp(min=0)], model.get_input_embeddings()(ids))

    with torch.no_grad():
        mask = attention(rows, torch.float32)
        embeds_RTD = embed(rows.ids_RT, rows.visual_RT)
        logits_RTV = model(inputs_embeds=embeds_RTD, attention_mask=mask, position_ids=rows.position_RT).logits
        assert bool(logits_RTV.isfinite().all())
        loss_RT = torch.nn.functional.cross_entropy(
            logits_RTV[:, :-1].transpose(1, 2), rows.ids_RT[:, 1:], reduction="none"
        )
        for number, _, first, piece in made:
            visual = torch.tensor(piece.visual)
            visual = torch.where(visual >= 0, visual + first * QUERIES, visual)
            alone = token_losses_alone(model, piece, embed(torch.tensor(piece.ids), visual))
            mine = loss_RT[(rows.sample_RT[:, 1:] == number) & rows.learnt_RT[:, 1:]]
            torch.testing.assert_close(mine, torch.tensor(alone), atol=1e-5, rtol=0)
