"""The checkpoint that training starts from: the tiny shape with random weights and its two tokenizers.

The Q-Former has BLIP-2's text branch and retrieval heads; it does not read the instruction. In bfloat16 the whole
stays under 15 MB. The LLaMA's tokenizer is `tokenizer.py`'s; the Q-Former's is a byte-pair vocabulary of its own, in
which a Chinese word is mostly one token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import Blip2QFormerConfig, Blip2VisionConfig, Blip2VisionModel, LlamaConfig, LlamaForCausalLM

from training.tiny.emoji import Concept
from training.tiny.tokenizer import convert, corpus, train_sentencepiece
from ziya.checkpoint import CheckpointConfig, GenerationDefaults
from ziya.model.preprocessing import Preprocessing
from ziya.model.qformer import QFormerModule
from ziya.model.weights import LlamaPart, QFormerPart, VisionPart, save_checkpoint

NAME = "ziya-tiny"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]")
_SPREAD = 0.02


@dataclass(frozen=True)
class Shape:
    """Sizes of the three parts. One width for all of them."""

    image_px: int = 48
    patch_px: int = 8
    width: int = 192
    heads: int = 6
    vision_layers: int = 4
    qformer_layers: int = 2
    queries: int = 8
    caption_vocabulary: int = 3072
    joint_width: int = 128
    llama_layers: int = 4
    llama_intermediate: int = 512
    llama_vocabulary: int = 4096
    context: int = 1024


def write_initial(folder: Path, concepts: list[Concept], shape: Shape, seed: int) -> None:
    """Writes the checkpoint; equal arguments give equal files."""
    captions = caption_tokenizer(concepts, shape.caption_vocabulary)
    sentencepiece = train_sentencepiece(corpus(concepts), shape.llama_vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision = Blip2VisionModel(_vision_config(shape))
        qformer = QFormerModule(
            _qformer_config(shape, captions.get_vocab_size()), queries=shape.queries, retrieval=True
        )
        llama = LlamaForCausalLM(_llama_config(shape))
        projection = nn.Linear(shape.width, shape.width)
        nn.init.normal_(projection.weight, std=_SPREAD)
    save_checkpoint(
        folder,
        config=_config(shape),
        vision=VisionPart(vision.config.to_diff_dict(), vision.state_dict(), Preprocessing(shape.image_px)),
        qformer=QFormerPart(qformer.config.to_diff_dict(), qformer.state_dict(), captions.to_str()),
        llama=_llama_part(llama, projection, sentencepiece),
    )


def caption_tokenizer(concepts: Iterable[Concept], vocabulary: int) -> Tokenizer:
    """The Q-Former's: lower case, [CLS] first and [SEP] last. Names count more than keywords."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True)]
    )
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(_caption_corpus(concepts), trainer)
    begin, end = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", begin), ("[SEP]", end)]
    )
    return tokenizer


def _caption_corpus(concepts: Iterable[Concept]) -> Iterable[str]:
    for concept in concepts:
        yield from [concept.name_en, concept.name_zh] * 6
        yield from (*concept.keywords_en, *concept.keywords_zh, concept.group_en, concept.group_zh)


def _config(shape: Shape) -> CheckpointConfig:
    return CheckpointConfig(
        name=NAME,
        queries=shape.queries,
        vision_width=shape.width,
        qformer_width=shape.width,
        llm_width=shape.width,
        context_length=shape.context,
        retrieval=True,
        # So small a model only gets worse by sampling.
        generation=GenerationDefaults(max_tokens=64, temperature=0.0, top_p=1.0),
    )


def _vision_config(shape: Shape) -> Blip2VisionConfig:
    # The library's default initializer_range of 1e-10 suits only weights that are loaded.
    return Blip2VisionConfig(
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.heads,
        image_size=shape.image_px,
        patch_size=shape.patch_px,
        hidden_act="gelu",
        initializer_range=_SPREAD,
    )


def _qformer_config(shape: Shape, vocabulary: int) -> Blip2QFormerConfig:
    return Blip2QFormerConfig(
        vocab_size=vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.qformer_layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        cross_attention_frequency=1,
        encoder_hidden_size=shape.width,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        use_qformer_text_input=True,
        image_text_hidden_size=shape.joint_width,
    )


def _llama_config(shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=shape.llama_vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.llama_intermediate,
        num_hidden_layers=shape.llama_layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )


def _llama_part(llama: LlamaForCausalLM, projection: nn.Linear, sentencepiece: bytes) -> LlamaPart:
    tensors = llama.state_dict()
    del tensors["lm_head.weight"]  # tied to the embeddings
    return LlamaPart(
        config=llama.config.to_dict(),
        tensors=tensors,
        projection=projection.state_dict(prefix="language_projection."),
        tokenizer=convert(sentencepiece).to_str(),
        files={"tokenizer.model": sentencepiece},
    )
