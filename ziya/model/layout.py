"""Which tensors each part of a checkpoint holds, and their shapes, worked out from the configs alone.

Names are Hugging Face's (BLIP-2 and LLaMA), so that published weights load unchanged:

    vision/    embeddings.* encoder.layers.N.* post_layernorm.*
    qformer/   query_tokens, qformer.*, and where trained embeddings.* vision_projection.* text_projection.* itm_head.*
    llama/     model.embed_tokens.* model.layers.N.* model.norm.* lm_head.*
               projection.safetensors: language_projection.{weight,bias}

Nothing is allocated, and neither torch nor transformers is imported: the LLaMA engine must start in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]
Table = dict[str, Shape]


@dataclass(frozen=True)
class VisionShape:
    """The numbers of a Blip2VisionConfig that decide tensor shapes; defaults are EVA ViT-g/14."""

    hidden_size: int = 1408
    intermediate_size: int = 6144
    num_hidden_layers: int = 39
    image_size: int = 224
    patch_size: int = 14
    qkv_bias: bool = True

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> VisionShape:
        return cls(**{name: raw[name] for name in cls.__dataclass_fields__ if name in raw})

    @property
    def positions(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True)
class QFormerShape:
    """The numbers of a Blip2QFormerConfig that decide tensor shapes; defaults are BLIP-2's."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    cross_attention_frequency: int = 2
    encoder_hidden_size: int = 1408
    vocab_size: int = 30522
    max_position_embeddings: int = 512
    use_qformer_text_input: bool = False
    image_text_hidden_size: int = 256

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> QFormerShape:
        return cls(**{name: raw[name] for name in cls.__dataclass_fields__ if name in raw})


@dataclass(frozen=True)
class LlamaShape:
    """What a LLaMA is, as far as running it needs: widths in elements, `max_positions` in tokens."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    rms_eps: float
    rope_theta: float
    max_positions: int
    tied: bool = False
    eos_ids: tuple[int, ...] = (2,)


def vision_table(shape: VisionShape) -> Table:
    """Names and shapes of vision/model.safetensors."""
    width, inner = shape.hidden_size, shape.intermediate_size
    table: Table = {
        "embeddings.class_embedding": (1, 1, width),
        "embeddings.position_embedding": (1, shape.positions, width),
        **_linear("embeddings.patch_embedding", width, 3, shape.patch_size, shape.patch_size),
        **_norm("post_layernorm", width),
    }
    for number in range(shape.num_hidden_layers):
        layer = f"encoder.layers.{number}"
        table |= _linear(f"{layer}.self_attn.qkv", 3 * width, width, bias=shape.qkv_bias)
        table |= _linear(f"{layer}.self_attn.projection", width, width)
        table |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
        table |= _linear(f"{layer}.mlp.fc1", inner, width) | _linear(f"{layer}.mlp.fc2", width, inner)
    return table


def qformer_table(shape: QFormerShape, *, queries: int, retrieval: bool = False) -> Table:
    """Names and shapes of qformer/model.safetensors; the text branch is there where the config says so."""
    width = shape.hidden_size
    table: Table = {"query_tokens": (1, queries, width), **_norm("qformer.layernorm", width)}
    for number in range(shape.num_hidden_layers):
        table |= _qformer_layer(shape, number)
    if shape.use_qformer_text_input:
        table["embeddings.word_embeddings.weight"] = (shape.vocab_size, width)
        table["embeddings.position_embeddings.weight"] = (shape.max_position_embeddings, width)
    if retrieval:
        table |= _linear("vision_projection", shape.image_text_hidden_size, width)
        table |= _linear("text_projection", shape.image_text_hidden_size, width)
        table |= _linear("itm_head", 2, width)
    return table


def _qformer_layer(shape: QFormerShape, number: int) -> Table:
    layer, width = f"qformer.encoder.layer.{number}", shape.hidden_size
    table = _attention(f"{layer}.attention", width, width)
    if number % shape.cross_attention_frequency == 0:
        table |= _attention(f"{layer}.crossattention", width, shape.encoder_hidden_size)
    for branch in ("_query", "") if shape.use_qformer_text_input else ("_query",):
        table |= _linear(f"{layer}.intermediate{branch}.dense", shape.intermediate_size, width)
        table |= _linear(f"{layer}.output{branch}.dense", width, shape.intermediate_size)
        table |= _norm(f"{layer}.output{branch}.LayerNorm", width)
    return table


def _attention(name: str, width: int, source_width: int) -> Table:
    return {
        **_linear(f"{name}.attention.query", width, width),
        **_linear(f"{name}.attention.key", width, source_width),
        **_linear(f"{name}.attention.value", width, source_width),
        **_linear(f"{name}.output.dense", width, width),
        **_norm(f"{name}.output.LayerNorm", width),
    }


def projection_table(qformer_width: int, llm_width: int) -> Table:
    """Names and shapes of llama/projection.safetensors."""
    return _linear("language_projection", llm_width, qformer_width)


def llama_table(shape: LlamaShape) -> Table:
    """Names and shapes of the tensors in llama/; a tied head is not stored."""
    width, inner = shape.hidden, shape.intermediate
    table: Table = {"model.embed_tokens.weight": (shape.vocab, width), "model.norm.weight": (width,)}
    if not shape.tied:
        table["lm_head.weight"] = (shape.vocab, width)
    for number in range(shape.layers):
        layer = f"model.layers.{number}"
        table[f"{layer}.input_layernorm.weight"] = (width,)
        table[f"{layer}.post_attention_layernorm.weight"] = (width,)
        table[f"{layer}.self_attn.q_proj.weight"] = (shape.heads * shape.head_dim, width)
        table[f"{layer}.self_attn.k_proj.weight"] = (shape.kv_heads * shape.head_dim, width)
        table[f"{layer}.self_attn.v_proj.weight"] = (shape.kv_heads * shape.head_dim, width)
        table[f"{layer}.self_attn.o_proj.weight"] = (width, shape.heads * shape.head_dim)
        table[f"{layer}.mlp.gate_proj.weight"] = (inner, width)
        table[f"{layer}.mlp.up_proj.weight"] = (inner, width)
        table[f"{layer}.mlp.down_proj.weight"] = (width, inner)
    return table


def _linear(name: str, *shape: int, bias: bool = True) -> Table:
    weight: Table = {f"{name}.weight": shape}
    return {**weight, f"{name}.bias": shape[:1]} if bias else weight


def _norm(name: str, width: int) -> Table:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
