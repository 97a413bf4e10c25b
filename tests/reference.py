"""What the right answer is: the same weights run by transformers, greedily, in float32.

The visual tokens pass through float16 between the parts as they do on the bus, so that equality token for
token can be asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from ziya.checkpoint import read_config
from ziya.model.llama import LlamaWeights, load_llama
from ziya.model.qformer import QFormer
from ziya.model.vision import VisionEncoder


def reference_generate(
    checkpoint: Path,
    images: Sequence[NDArray[np.uint8]],
    texts: Sequence[str],
    max_new_tokens: int,
    *,
    instruction: str | None = None,
    ignore_eos: bool = False,
) -> list[int]:
    """Greedy new token ids (eos included when it ends the answer) for `texts` with `images` between each two.

    `images` are uint8 [height, width, 3]; `texts` has one more element. `instruction` for a Q-Former that reads it.
    """
    tokens = [visual_tokens(checkpoint, image, instruction) for image in images]
    return generate_from_tokens(checkpoint, tokens, texts, max_new_tokens, ignore_eos=ignore_eos)


def visual_tokens(checkpoint: Path, image: NDArray[np.uint8], instruction: str | None = None) -> NDArray[np.float16]:
    """uint8 [height, width, 3] -> float16 [queries, Q-Former width]."""
    vision, qformer, _, _ = _load(checkpoint)
    features = vision(vision.preprocessing(image)[None])
    ids = [qformer.tokenize(instruction or "")] if qformer.reads_instruction else None
    tokens: NDArray[np.float16] = qformer(features, ids)[0]
    return tokens


def generate_from_tokens(
    checkpoint: Path,
    tokens: Sequence[NDArray[np.float16]],
    texts: Sequence[str],
    max_new_tokens: int,
    *,
    ignore_eos: bool = False,
) -> list[int]:
    """As `reference_generate`, with the visual tokens given: one float16 [queries, width] an image."""
    _, _, weights, model = _load(checkpoint)
    embeddings = prompt_embeddings(weights, model, tokens, texts)
    output = model.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=None if ignore_eos else list(weights.shape.eos_ids),
        pad_token_id=0,
    )
    return [int(token) for token in output[0]]


def prompt_embeddings(
    weights: LlamaWeights, model: LlamaForCausalLM, tokens: Sequence[NDArray[np.float16]], texts: Sequence[str]
) -> Tensor:
    """float32 [1, positions, llm width]: text pieces with projected images between them."""
    tokenizer = Tokenizer.from_file(str(weights.tokenizer))
    embed = model.get_input_embeddings()
    pieces: list[Tensor] = []
    with torch.inference_mode():
        for number, text in enumerate(texts):
            ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids, dtype=torch.long)
            pieces.append(embed(ids))
            if number < len(tokens):
                visual = torch.from_numpy(tokens[number]).float()
                pieces.append(visual @ weights.projection_weight.T + weights.projection_bias)
        return torch.cat(pieces)[None]


def _load(checkpoint: Path) -> tuple[VisionEncoder, QFormer, LlamaWeights, LlamaForCausalLM]:
    prints = tuple(sorted(read_config(checkpoint).fingerprints.items()))
    return _load_once(checkpoint, prints)


@cache
def _load_once(
    checkpoint: Path, _fingerprints: tuple[tuple[str, str], ...]
) -> tuple[VisionEncoder, QFormer, LlamaWeights, LlamaForCausalLM]:
    weights = load_llama(checkpoint)
    config = LlamaConfig.from_dict(json.loads((checkpoint / "llama" / "config.json").read_text("utf-8")))
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(weights.tensors, strict=not weights.shape.tied)
    return VisionEncoder.load(checkpoint), QFormer.load(checkpoint), weights, model
