"""LLaMA's kind of tokenizer for the names and questions of this data.

SentencePiece BPE with byte fallback, in its own file format and as a `tokenizer.json` with the same ids.
The turn markers, ":" and the line end are whole symbols, so a text splits at them and its parts can be
tokenised together or one by one with the same result: generated answers equal re-read ones.
"""

import io
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from training.tiny import questions
from training.tiny.emoji import Concept

SPACE = "▁"
SPECIAL = ("<unk>", "<s>", "</s>", "<human>", "<bot>")
ALONE = (":", "\n")


def corpus(concepts: list[Concept]) -> list[str]:
    """Lines of text: names count more than keywords, keywords more than questions."""
    lines: list[str] = []
    for concept in concepts:
        lines += [concept.name_en, concept.name_zh] * 6
        lines += [*concept.keywords_en, *concept.keywords_zh, concept.group_en, concept.group_zh]
    texts = [value for key, value in vars(questions).items() if key.isupper()]
    return lines + 4 * [line for text in texts for line in _strings(text) if line]


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return value.replace("{", "\n").replace("}", "\n").split("\n")
    parts = value.values() if isinstance(value, dict) else value
    return [text for part in parts for text in _strings(part)]


def train_sentencepiece(lines: list[str], vocabulary: int) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        byte_fallback=True,
        character_coverage=0.999,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        user_defined_symbols=[*SPECIAL[3:], *ALONE],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def convert(sentencepiece_model: bytes) -> Tokenizer:
    """The same vocabulary for the `tokenizers` library."""
    source = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    pieces = [source.id_to_piece(i) for i in range(source.get_piece_size())]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, _merges(vocabulary), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(Regex(SPACE), " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in ALONE])
    return tokenizer


def _merges(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """A piece is made of the two pieces that give it the lowest ids; merges go in the order of ids."""
    merges: list[tuple[str, str]] = []
    for piece in sorted(vocabulary, key=vocabulary.__getitem__):
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [(left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
        merges += sorted(known, key=lambda cut: (vocabulary[cut[0]], vocabulary[cut[1]]))
    return merges
