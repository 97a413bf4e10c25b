"""Answers that follow a JSON schema: through the sampler with random logits, and through the engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from services.llama.engine.choice import Choice
from services.llama.engine.detokenizer import Detokenizer, TokenBytes
from services.llama.engine.guided import Grammars
from services.llama.engine.sampler import choose
from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Prompt
from tests.engines import ask, engine_on
from tests.tiny import llama_tokenizer
from ziya.errors import InvalidRequest

EOS = 2
PADDED = 8  # logits that no token has

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "名字": {"type": "string", "maxLength": 6},
        "颜色": {"enum": ["红色", "蓝色", "猫"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["名字", "颜色", "age", "tags"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"type": "string", "maxLength": 4},
    {"type": "array", "items": {"type": "string", "pattern": "^[猫狗]{1,3}$"}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"type": "null"}, {"const": "一只猫"}, {"type": "integer", "minimum": 10, "maximum": 99}]},
    {"$defs": {"n": {"type": "integer", "maximum": 9, "minimum": 1}}, "type": "array", "items": {"$ref": "#/$defs/n"}},
]


def byte_level_tokenizer() -> Tokenizer:
    """GPT-2's kind: every byte, and merges that leave characters in halves."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: number for number, piece in enumerate(["<a>", "<b>", "<eos>", *alphabet])}
    merges = [("ç", "Į"), ("Ġ", "Ġ"), ('"', ":")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<a>", "<b>", "<eos>"])
    return tokenizer


TOKENIZERS = {"fallback": llama_tokenizer, "byte level": byte_level_tokenizer}


def write(tokenizer: Tokenizer, sampling: Sampling, limit: int) -> tuple[str, bool]:
    """Text drawn from random logits under the schema, and whether it came to its end."""
    table, vocabulary = TokenBytes(tokenizer), tokenizer.get_vocab_size() + PADDED
    guide = Grammars(tokenizer, table, vocabulary, (EOS,)).guide(sampling.json_schema)
    choice, text = Choice(sampling, guide), Detokenizer(table)
    generator, written = torch.Generator().manual_seed(sampling.seed or 0), ""
    for _ in range(limit):
        scores = torch.randn(1, vocabulary, generator=generator) * 3
        token = choose(scores, [choice])[0].token
        if token == EOS:
            return written + text.flush(), True
        assert token < vocabulary - PADDED
        written += text.push(token)
        choice.accept(token)
        assert not choice.error
    return written + text.flush(), False


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_what_ends_is_json_of_the_schema(kind: str, number: int) -> None:
    schema, ended = SCHEMAS[number], 0
    for seed in range(8):
        sampling = Sampling(temperature=1.0, seed=seed, json_schema=json.dumps(schema, ensure_ascii=False))
        text, done = write(TOKENIZERS[kind](), sampling, 600)
        if done:
            ended += 1
            jsonschema.validate(json.loads(text), schema)
            assert "\ufffd" not in text
    assert ended >= 6


def test_rows_of_a_batch_follow_each_its_own_schema() -> None:
    tokenizer = llama_tokenizer()
    vocabulary = tokenizer.get_vocab_size()
    grammars = Grammars(tokenizer, TokenBytes(tokenizer), vocabulary, (EOS,))
    rows = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(1))
    free = rows.clone()
    text = Choice(Sampling(json_schema="{}"), grammars.guide('{"type": "string"}'))
    number = Choice(Sampling(json_schema="{}"), grammars.guide('{"const": 7}'))
    chosen = choose(rows, [text, Choice(Sampling()), number])
    assert [tokenizer.id_to_token(chosen[0].token), tokenizer.id_to_token(chosen[2].token)] == ["<0x22>", "<0x37>"]
    assert chosen[1].token == int(free[1].argmax())
    assert torch.equal(rows[1], free[1])


WRONG = [
    ("{", "not valid JSON"),
    ("[]", "must be a JSON object"),
    ("5", "must be a JSON object"),
    ('{"type": "thing"}', "thing"),
    ('{"type": "string", "pattern": "("}', "regex"),
    ('{"$ref": "#/nowhere"}', "nowhere"),
    ('{"$ref": "https://example.org/schema"}', "example.org"),
    ('{"not": {"type": "string"}}', "not"),
    ('{"type": "string", "minLength": 5, "maxLength": 3}', "nsatisfiable"),
    (json.dumps({"allOf": [{"pattern": f"a{n}*b"} for n in range(40)]}), "at most 8 patterns"),
    ('{"items": ' * 300 + "{}" + "}" * 300, "recursion"),
]


@pytest.mark.parametrize(("schema", "sentence"), WRONG)
def test_a_schema_that_cannot_be_followed_is_refused_by_name(schema: str, sentence: str) -> None:
    tokenizer = llama_tokenizer()
    grammars = Grammars(tokenizer, TokenBytes(tokenizer), tokenizer.get_vocab_size(), (EOS,))
    with pytest.raises(InvalidRequest, match=f"json_schema.*{sentence}"):
        grammars.guide(schema)


def test_without_an_end_token_no_schema_is_taken() -> None:
    tokenizer = llama_tokenizer()
    with pytest.raises(InvalidRequest, match="no end token"):
        Grammars(tokenizer, TokenBytes(tokenizer), tokenizer.get_vocab_size(), ()).guide("{}")


PROMPT = Prompt(((1, 5, 9, 40),))


async def test_the_engine_writes_json_or_says_that_it_was_cut(tiny_checkpoint: Path) -> None:
    schema = json.dumps(PERSON, ensure_ascii=False)
    async with engine_on(tiny_checkpoint) as engine:
        ways = [Sampling(temperature=1.0, seed=seed, max_tokens=400, json_schema=schema) for seed in range(6)]
        answers = await asyncio.gather(*(ask(engine, PROMPT, way) for way in ways))
        whole = [answer for answer in answers if answer.finish_reason == "stop"]
        assert len(whole) >= 3
        for answer in whole:
            jsonschema.validate(json.loads(answer.text), PERSON)
        again = await ask(engine, PROMPT, ways[0])
        assert again.text == answers[0].text
        cut = await ask(engine, PROMPT, Sampling(max_tokens=4, json_schema=schema))
        assert cut.finish_reason == "length"
        assert cut.text.startswith("{")


async def test_the_engine_refuses_before_it_takes(tiny_checkpoint: Path) -> None:
    async with engine_on(tiny_checkpoint) as engine:
        bad = Sampling(json_schema='{"type": "thing"}')
        with pytest.raises(InvalidRequest, match="thing"):
            await engine.prepare(bad)
        with pytest.raises(InvalidRequest, match="thing"):
            engine.submit(PROMPT, bad)
        with pytest.raises(InvalidRequest, match="no token 99999"):
            engine.submit(PROMPT, Sampling(logit_bias=((99999, 1.0),)))
        await engine.prepare(Sampling(json_schema="{}"))
        assert engine.stats().waiting == engine.stats().running == 0


async def test_a_schema_that_becomes_too_costly_ends_its_own_request_alone(tiny_checkpoint: Path) -> None:
    """A choice of 700 arrays compiles; after the first bracket it is more than the parser follows."""
    costly = json.dumps({"anyOf": [{"type": "array", "items": {"const": number}} for number in range(700)]})
    async with engine_on(tiny_checkpoint) as engine:
        other = asyncio.create_task(ask(engine, PROMPT, Sampling(max_tokens=30, ignore_eos=True)))
        with pytest.raises(InvalidRequest, match=r"the JSON schema cannot be followed: .*items"):
            await ask(engine, PROMPT, Sampling(max_tokens=50, json_schema=costly))
        assert len((await other).ids) == 30
        assert engine.stats().running == engine.stats().blocks_used == 0
        assert engine.stats().failed == 1


async def test_the_engine_tells_logprobs_for_every_token(tiny_checkpoint: Path) -> None:
    async with engine_on(tiny_checkpoint) as engine:
        told, ids = [], []
        async for delta in engine.submit(PROMPT, Sampling(max_tokens=12, logprobs=2, ignore_eos=True)):
            told += delta.logprobs
            ids += delta.ids
        assert [each.token for each in told] == ids
        assert len(ids) == 12
        assert all(each.top[0] == (each.token, each.logprob) and each.top[1][1] <= each.logprob for each in told)
