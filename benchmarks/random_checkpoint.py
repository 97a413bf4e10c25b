"""A checkpoint with random weights and a LLaMA of about 110 million parameters: speed only, the answers mean nothing.

The LLaMA has the shape that the peer engines were measured with (hidden 768, 12 layers, 12 heads, SwiGLU 2048,
vocabulary 32000, tied embeddings). ViT and Q-Former are small (384 wide, 6 layers, 224 px, 32 queries), because
the figure that this checkpoint is for is the decoder's.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig, Blip2VisionConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from ziya.checkpoint import CheckpointConfig, GenerationDefaults
from ziya.model.preprocessing import Preprocessing
from ziya.model.qformer import QFormerModule
from ziya.model.weights import LlamaPart, QFormerPart, VisionPart, save_checkpoint

VOCABULARY = 32000
CONTEXT = 512
QUERIES = 32


def build(folder: Path, seed: int = 0, *, retrieval: bool = False) -> Path:
    """Writes the checkpoint to `folder` unless it is there already; returns the folder. The LLaMA is bfloat16.

    With `retrieval` the Q-Former has the heads of the first stage, and reads texts with the LLaMA's tokenizer's words.
    """
    if (folder / "config.json").is_file():
        return folder
    torch.manual_seed(seed)
    vision, qformer, llama = _vision(), _qformer(retrieval), LlamaForCausalLM(_llama_config()).to(torch.bfloat16)
    projection = nn.Linear(384, llama.config.hidden_size)
    tensors = {name: tensor for name, tensor in llama.state_dict().items() if name != "lm_head.weight"}
    save_checkpoint(
        folder,
        config=CheckpointConfig(
            name="random-110m",
            queries=QUERIES,
            vision_width=384,
            qformer_width=384,
            llm_width=llama.config.hidden_size,
            context_length=CONTEXT,
            retrieval=retrieval,
            generation=GenerationDefaults(temperature=0.0),
        ),
        vision=VisionPart(vision.config.to_dict(), vision.state_dict(), Preprocessing(224)),
        qformer=QFormerPart(
            qformer.config.to_dict(), qformer.state_dict(), _captions(seed).to_str() if retrieval else None
        ),
        llama=LlamaPart(
            llama.config.to_dict(),
            tensors,
            {f"language_projection.{name}": tensor for name, tensor in projection.state_dict().items()},
            _tokenizer(seed).to_str(),
        ),
    )
    return folder


def _vision() -> Blip2VisionModel:
    config = Blip2VisionConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=224,
        patch_size=14,
        initializer_range=0.02,
    )
    return Blip2VisionModel(config)


def _qformer(retrieval: bool) -> QFormerModule:
    config = Blip2QFormerConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=6,
        encoder_hidden_size=384,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        use_qformer_text_input=retrieval,
        image_text_hidden_size=256,
    )
    module = QFormerModule(config, queries=QUERIES, retrieval=retrieval)
    nn.init.normal_(module.query_tokens, std=0.5)
    return module


def _llama_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def _tokenizer(seed: int) -> Tokenizer:
    """A byte-level BPE over invented words in two scripts, filled up to the vocabulary's size but for one row.

    That one is for `<image>`, which other projects' layouts have: with a row more no matrix would be a round size.
    """
    tokenizer = _byte_pairs(seed, VOCABULARY - 3, ["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<human>", "<bot>")])
    missing = range(tokenizer.get_vocab_size(), VOCABULARY - 1)
    tokenizer.add_tokens([AddedToken(f"<extra_{number}>") for number in missing])
    return tokenizer


def _captions(seed: int) -> Tokenizer:
    """The Q-Former's: the same words between its own marks."""
    tokenizer = _byte_pairs(seed, VOCABULARY, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(mark, tokenizer.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _byte_pairs(seed: int, vocabulary: int, special: list[str]) -> Tokenizer:
    draw = random.Random(seed)
    latin = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(20000)]
    chinese = ["".join(chr(draw.randint(0x4E00, 0x6FFF)) for _ in range(draw.randint(1, 3))) for _ in range(20000)]
    words = latin + chinese
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>" if "<unk>" in special else "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((" ".join(words[i : i + 50]) for i in range(0, len(words), 50)), trainer)
    return tokenizer
