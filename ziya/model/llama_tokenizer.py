"""LLaMA's tokenizer as one tokenizer.json, also from the SentencePiece file that Ziya-LLaMA was published with.

The released model was trained with the slow LlamaTokenizer of its day. Two of its habits decide the token ids and
are kept: every text between two added tokens gets SentencePiece's leading space, and an added token given as
plain text (`<human>`, `<bot>` in added_tokens.json) swallows the white space around it. The result is compared
with SentencePiece itself before it is used.

No bos is added: prompts of this project have none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from ziya.checkpoint import CheckpointError
from ziya.model.sources import read_json

SPACE = "▁"
_PROBES = (
    "hello world",
    " two  spaces ",
    "你好，世界！ 图里有什么？",
    "ｆｕｌｌ ｗｉｄｔｈ",
    "a\nb\tc",
    "12345 + 6.7",
    "🐱 naïve ﬁ",
)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a LLaMA folder, from tokenizer.json or else tokenizer.model. Raises CheckpointError."""
    if (folder / "tokenizer.json").is_file():
        tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return tokenizer
    path = folder / "tokenizer.model"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no tokenizer: neither tokenizer.json nor tokenizer.model")
    tokenizer = from_sentencepiece(path)
    _add_tokens(tokenizer, folder)
    return tokenizer


def from_sentencepiece(path: Path) -> Tokenizer:
    """A BPE model with byte fallback as LLaMA has it. Raises CheckpointError when the file is of another kind."""
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{path} is not a SentencePiece model: {error}") from error
    pieces = [processor.id_to_piece(number) for number in range(processor.get_piece_size())]
    unknown = pieces[processor.unk_id()]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    merges = _merges(processor, vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    for text in _PROBES:
        if tokenizer.encode(text, add_special_tokens=False).ids != processor.encode(text):
            raise CheckpointError(f"{path} does not tokenize as LLaMA's does (it differs on {text!r})")
    control = [piece for number, piece in enumerate(pieces) if processor.is_control(number)]
    special = [unknown, *control]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    return tokenizer


def drop_token(tokenizer: Tokenizer, content: str) -> Tokenizer:
    """The tokenizer without one added token."""
    raw: dict[str, Any] = json_of(tokenizer)
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != content]
    result: Tokenizer = Tokenizer.from_str(text_of(raw))
    return result


def json_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer.json as an object."""
    raw: dict[str, Any] = json.loads(tokenizer.to_str())
    return raw


def text_of(raw: dict[str, Any]) -> str:
    """The text of a tokenizer.json given as an object."""
    return json.dumps(raw, ensure_ascii=False)


def _merges(processor: sentencepiece.SentencePieceProcessor, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs in the order in which SentencePiece joins them: the best score of the joined piece first."""
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece, number in vocab.items():
        if processor.is_byte(number) or processor.is_control(number) or processor.is_unknown(number):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                ranked.append((-processor.get_score(number), vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _add_tokens(tokenizer: Tokenizer, folder: Path) -> None:
    """Tokens of added_tokens.json, or with their own properties from tokenizer_config.json, under the same ids."""
    wanted: dict[int, AddedToken] = {}
    if (folder / "added_tokens.json").is_file():
        for text, number in read_json(folder / "added_tokens.json").items():
            wanted[number] = AddedToken(text, lstrip=True, rstrip=True, normalized=False)
    if (folder / "tokenizer_config.json").is_file():
        known = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
        for number, token in known.items():
            flags = {name: bool(token.get(name)) for name in ("lstrip", "rstrip", "single_word", "special")}
            wanted[int(number)] = AddedToken(token["content"], normalized=False, **flags)
    for number, token in sorted(wanted.items()):
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != number:
            raise CheckpointError(
                f"{folder}: added token {token.content!r} has id {number}, but the tokenizer's next is "
                f"{tokenizer.token_to_id(token.content)}"
            )
