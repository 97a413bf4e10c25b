"""What an engine's answers should be, worked out with transformers' model alone, one position after another."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from services.llama.engine.sampling import Sampling
from services.llama.engine.seam import Prompt
from ziya.model.llama import LlamaWeights, load_llama


def greedy_by(checkpoint: Path, prompt: Prompt, tokens: int, sampling: Sampling) -> list[int]:
    """The greedy answer under bias, then repetition penalty (text and answer), then frequency and presence (answer)."""
    text, answer = {token for piece in prompt.pieces for token in piece}, list[int]()
    for _ in range(tokens):
        longer = replace(prompt, pieces=(*prompt.pieces[:-1], prompt.pieces[-1] + tuple(answer)))
        logits = logits_of(checkpoint, longer)
        for token, bias in sampling.logit_bias:
            logits[token] += bias
        for token in text | set(answer):
            penalty = sampling.repetition_penalty
            logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
        for token, times in Counter(answer).items():
            logits[token] -= times * sampling.frequency_penalty + sampling.presence_penalty
        answer.append(int(logits.argmax()))
    return answer


@cache
def _transformers(checkpoint: Path) -> tuple[LlamaWeights, LlamaForCausalLM]:
    return load_llama(checkpoint), LlamaForCausalLM.from_pretrained(checkpoint / "llama", dtype=torch.float32).eval()


@torch.no_grad()
def logits_of(checkpoint: Path, prompt: Prompt) -> torch.Tensor:
    """transformers' float32 [vocabulary] of the token after the prompt."""
    weights, model = _transformers(checkpoint)
    parts = [model.get_input_embeddings()(torch.tensor(prompt.pieces[0], dtype=torch.long))]
    for visual, piece in zip(prompt.visuals, prompt.pieces[1:], strict=True):
        parts.append(torch.from_numpy(visual).float() @ weights.projection_weight.T + weights.projection_bias)
        parts.append(model.get_input_embeddings()(torch.tensor(piece, dtype=torch.long)))
    return model(inputs_embeds=torch.cat(parts)[None]).logits[0, -1]


def distribution(logits: torch.Tensor, sampling: Sampling) -> np.ndarray:
    """Each token's probability: temperature, then top-k, then top-p, as transformers does."""
    scores = (logits / sampling.temperature).double()
    if sampling.top_k:
        scores[scores < scores.topk(sampling.top_k).values[-1]] = -torch.inf
    probabilities, order = scores.softmax(-1).sort(descending=True)
    probabilities[probabilities.cumsum(-1) - probabilities >= sampling.top_p] = 0.0
    result = torch.zeros_like(probabilities)
    result[order] = probabilities / probabilities.sum()
    return result.numpy()


def chi_square_limit(degrees: int, chance: float) -> float:
    """What a chi-square exceeds with this chance (Wilson and Hilferty, 1931)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + NormalDist().inv_cdf(1 - chance) * spread**0.5) ** 3


def decoded(checkpoint: Path, ids: Sequence[int]) -> str:
    """What the ids of the tiny tokenizer say: its first three are special, and show nothing."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "llama" / "tokenizer.json"))
    raw = b""
    for token in ids:
        piece = tokenizer.id_to_token(token) or ""
        if piece.startswith("<0x"):
            raw += bytes([int(piece[3:5], 16)])
        elif token >= 3:
            raw += piece.replace("▁", " ").encode()
    return raw.decode(errors="replace")


def low_rank_adapter(checkpoint: Path, folder: Path, seed: int) -> LlamaForCausalLM:
    """Writes a LoRA adapter of rank 4 to `folder` in peft's layout; gives the model with it folded in."""
    model = LlamaForCausalLM.from_pretrained(checkpoint / "llama", dtype=torch.float32).eval()
    draw, tensors = torch.Generator().manual_seed(seed), dict[str, torch.Tensor]()
    for name, linear in model.named_modules():
        if name.endswith(("q_proj", "v_proj", "o_proj", "up_proj")):
            down = torch.randn(4, linear.weight.shape[1], generator=draw) * 0.2
            up = torch.randn(linear.weight.shape[0], 4, generator=draw) * 0.2
            tensors |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
            linear.weight.data += 2.0 * up @ down
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    names = ["q_proj", "v_proj", "o_proj", "up_proj"]
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": names, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    return model
