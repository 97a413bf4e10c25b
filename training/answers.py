"""What the model in training answers, greedily, and whether it is exactly right.

Prompts of one length are answered together: nothing is padded, so an answer is the one that the prompt gets alone.
Legend: B prompts, T positions, D LLaMA width, V visual tokens of a prompt (of all its images, in order).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from training.model import VisualLanguageModel, there
from training.retrieval import Beat, unheard


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
    max_tokens: int,
    batch: int = 128,
    beat: Beat = unheard,
) -> list[list[int]]:
    """Token ids of each answer, up to where serving would end it. `tokens[n]` are prompt n's visual tokens, [V, width].

    The model should be in eval mode. `beat` hears of every batch.
    """
    llama = there(model.llama, "llama")
    said: list[list[int]] = [[] for _ in prompts]
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        by_length[len(prompt.ids)].append(number)
    done = 0
    for numbers in by_length.values():
        for start in range(0, len(numbers), batch):
            some = numbers[start : start + batch]
            embedded_BTD = torch.stack([_embedded(model, prompts[number], tokens[number]) for number in some])
            for number, ids in zip(some, _greedy(llama, embedded_BTD, max_tokens), strict=True):
                said[number] = ids
            done += len(some)
            beat(f"answering: {done} of {len(prompts)}")
    return said


def _embedded(model: VisualLanguageModel, prompt: Prompt, tokens_VD: Tensor) -> Tensor:
    """What the LLaMA reads of a prompt, [T, D]."""
    words = there(model.llama, "llama").get_input_embeddings()
    device = words.weight.device
    embedded_TD: Tensor = words(torch.tensor(prompt.ids, device=device))
    visual_T = torch.tensor(prompt.visual, device=device)
    if len(tokens_VD):
        shown_VD = there(model.language_projection, "projection")(tokens_VD.to(device)).to(embedded_TD.dtype)
        embedded_TD = torch.where(visual_T[:, None] >= 0, shown_VD[visual_T.clamp(min=0)], embedded_TD)
    return embedded_TD


def _greedy(llama: LlamaForCausalLM, embedded_BTD: Tensor, max_tokens: int) -> list[list[int]]:
    ends = end_tokens(llama)
    ends_E = torch.tensor(ends, device=embedded_BTD.device, dtype=torch.long)
    output = llama(inputs_embeds=embedded_BTD, use_cache=True, logits_to_keep=1)
    chosen: list[Tensor] = [output.logits[:, -1].argmax(-1)]
    done_B = torch.isin(chosen[0], ends_E)
    while len(chosen) < max_tokens and not bool(done_B.all()):
        output = llama(input_ids=chosen[-1][:, None], past_key_values=output.past_key_values, use_cache=True)
        chosen.append(output.logits[:, -1].argmax(-1))
        done_B |= torch.isin(chosen[-1], ends_E)
    return [_until(row, ends) for row in torch.stack(chosen, 1).tolist()]


def end_tokens(llama: LlamaForCausalLM) -> tuple[int, ...]:
    """The ids at which an answer ends, in serving as here."""
    ends: Any = llama.config.eos_token_id
    if ends is None:
        return ()
    return tuple(ends) if isinstance(ends, list | tuple) else (ends,)


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    return ids[: next((place for place, one in enumerate(ids) if one in ends), len(ids))]


def is_right(said: str, truths: Iterable[str], language: str) -> bool:
    """Exactly one of the truths. Outer white space never counts; in English neither does case, nor how much of it."""
    return _plain(said, language) in {_plain(truth, language) for truth in truths}


def _plain(text: str, language: str) -> str:
    return " ".join(text.split()).casefold() if language == "en" else text.strip()
