"""What the model in training answers, greedily, and whether it is exactly right.

Prompts of one length are answered together: nothing is padded, so an answer is the one that the prompt gets alone.
Legend: B prompts, T positions, D LLaMA width, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.model import VisualLanguageModel, there


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt (0 at visual positions) and for each position which visual token of the sample, or -1."""

    ids: Sequence[int]
    visual: Sequence[int]


@torch.no_grad()
def answers(
    model: VisualLanguageModel,
    prompts: Sequence[Prompt],
    tokens: Sequence[Tensor],
    *,
    end: int,
    max_tokens: int,
    batch: int = 128,
) -> list[list[int]]:
    """Token ids of each answer, without `end`. `tokens[n]` are the visual tokens of prompt n, [images x Q, width]."""
    said: list[list[int]] = [[] for _ in prompts]
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt.ids), []).append(number)
    for numbers in by_length.values():
        for start in range(0, len(numbers), batch):
            some = numbers[start : start + batch]
            embedded_BTD = torch.stack([_embed(model, prompts[number], tokens[number]) for number in some])
            for number, ids in zip(some, _greedy(model, embedded_BTD, end, max_tokens), strict=True):
                said[number] = ids
    return said


def _embed(model: VisualLanguageModel, prompt: Prompt, tokens_VD: Tensor) -> Tensor:
    llama = there(model.llama, "llama")
    device = llama.get_input_embeddings().weight.device
    words_TD: Tensor = llama.get_input_embeddings()(torch.tensor(list(prompt.ids), device=device)).clone()
    visual = torch.tensor(list(prompt.visual), device=device)
    if bool((visual >= 0).any()):
        shown = there(model.language_projection, "projection")(tokens_VD)
        words_TD[visual >= 0] = shown[visual[visual >= 0]].to(words_TD.dtype)
    return words_TD


def _greedy(model: VisualLanguageModel, embedded_BTD: Tensor, end: int, max_tokens: int) -> list[list[int]]:
    llama = there(model.llama, "llama")
    output = llama(inputs_embeds=embedded_BTD, use_cache=True, logits_to_keep=1)
    chosen: list[Tensor] = [output.logits[:, -1].argmax(-1)]
    done_B = chosen[0] == end
    while len(chosen) < max_tokens and not bool(done_B.all()):
        output = llama(input_ids=chosen[-1][:, None], past_key_values=output.past_key_values, use_cache=True)
        chosen.append(output.logits[:, -1].argmax(-1))
        done_B = done_B | (chosen[-1] == end)
    every: list[list[int]] = torch.stack(chosen, 1).tolist()
    return [ids[: ids.index(end)] if end in ids else ids for ids in every]


def is_right(said: str, truths: Sequence[str]) -> bool:
    """Exactly one of the truths, but for case and spaces."""
    return _plain(said) in {_plain(truth) for truth in truths}


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
