"""A checkpoint small enough to build in a test: random weights, every part and file that a real one has.

The tokenizer is built like LLaMA's (BPE with byte fallback), so that any Chinese text survives encoding and decoding.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig, Blip2VisionConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from ziya.checkpoint import CheckpointConfig, GenerationDefaults
from ziya.model.preprocessing import Preprocessing
from ziya.model.qformer import QFormerModule
from ziya.model.weights import LlamaPart, QFormerPart, VisionPart, save_checkpoint

# Larger than in training, so that every image, token and position changes what such a small model says.
INIT = 0.2
QUERIES = 4
CONTEXT = 512


def build_checkpoint(
    folder: Path,
    *,
    reads_instruction: bool = False,
    retrieval: bool = False,
    seed: int = 0,
    tied: bool = False,
    heads: int = 4,
    kv_heads: int = 2,
    name: str = "ziya-test",
    shard_bytes: int = 4 << 30,
) -> Path:
    """Writes a checkpoint of random weights to `folder` and returns it. Equal arguments give equal files."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision = Blip2VisionModel(vision_config()).eval()
        qformer = qformer_module(text=reads_instruction or retrieval, retrieval=retrieval)
        tokenizer = llama_tokenizer()
        llama = LlamaForCausalLM(
            llama_config(tokenizer.get_vocab_size(), tied=tied, heads=heads, kv_heads=kv_heads)
        ).eval()
        projection = nn.Linear(qformer.config.hidden_size, llama.config.hidden_size)
        nn.init.normal_(projection.weight, std=INIT)
    tensors = llama.state_dict()
    if tied:
        del tensors["lm_head.weight"]
    config = CheckpointConfig(
        name=name,
        queries=QUERIES,
        vision_width=vision.config.hidden_size,
        qformer_width=qformer.config.hidden_size,
        llm_width=llama.config.hidden_size,
        context_length=CONTEXT,
        qformer_reads_instruction=reads_instruction,
        retrieval=retrieval,
        generation=GenerationDefaults(max_tokens=16),
    )
    save_checkpoint(
        folder,
        config=config,
        vision=VisionPart(vision.config.to_dict(), vision.state_dict(), Preprocessing(vision.config.image_size)),
        qformer=QFormerPart(
            qformer.config.to_dict(),
            qformer.state_dict(),
            bert_tokenizer().to_str() if qformer.config.use_qformer_text_input else None,
        ),
        llama=LlamaPart(
            llama.config.to_dict(),
            tensors,
            {f"language_projection.{name}": tensor for name, tensor in projection.state_dict().items()},
            tokenizer.to_str(),
        ),
        shard_bytes=shard_bytes,
    )
    return folder


def vision_config() -> Blip2VisionConfig:
    return Blip2VisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        initializer_range=INIT,
    )


def qformer_config(*, text: bool = False) -> Blip2QFormerConfig:
    return Blip2QFormerConfig(
        vocab_size=bert_tokenizer().get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        encoder_hidden_size=32,
        max_position_embeddings=160,
        initializer_range=INIT,
        use_qformer_text_input=text,
        image_text_hidden_size=16,
    )


def qformer_module(*, text: bool = False, retrieval: bool = False) -> QFormerModule:
    module = QFormerModule(qformer_config(text=text), queries=QUERIES, retrieval=retrieval).eval()
    nn.init.normal_(module.query_tokens, std=0.5)
    if text:
        nn.init.normal_(module.embeddings.word_embeddings.weight, std=0.5)
    return module


def llama_config(vocab: int, *, tied: bool = False, heads: int = 4, kv_heads: int = 2) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-6,
        initializer_range=INIT,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def llama_tokenizer() -> Tokenizer:
    """BPE with byte fallback; <unk> 0, <s> 1, </s> 2, then bytes, a few pieces, and at the end <human> and <bot>."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz", *"?.,:", *"这是一只猫狗什么图中的", "th", "the", "▁the", "an", "▁a"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("a", "n"), ("▁", "a")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in pieces[:3]])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<human>", "<bot>")])
    return tokenizer


def bert_tokenizer() -> Tokenizer:
    """The Q-Former's: characters with BERT's special tokens."""
    characters = "abcdefghijklmnopqrstuvwxyz0123456789?.,这是一只猫狗什么图中的"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters, *(f"##{letter}" for letter in characters)]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return tokenizer
