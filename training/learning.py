"""What of the model learns in a stage, and how fast; everything else is frozen, still, and as small as it may be.

`learn` of a recipe gives parts ("vision", "qformer", "projection", "llama") or parts of parts
("vision.post_layernorm") a share of the rate; the longest name that fits a weight decides, 0 freezes. With LoRA only
the adapters of the LLaMA learn, at the LLaMA's share. What only training needs (heads, temperature) always learns.
Weights that no loss of the recipe reaches are frozen too: then every weight that learns has a gradient in every step,
on every process, and neither DDP nor weight decay meets one that was not used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from training.errors import BadConfig
from training.objectives import Objectives
from training.recipe import Recipe

_ADAPTER = ".lora_"
# A key's bias adds the same to all scores of a query, which softmax takes out again: its gradient is zero. Adam would
# blow up the rounding noise that stands in its place, and that noise differs with the number of processes.
_IDLE = ".attention.key.bias"
_TEXT_BRANCH = re.compile(r"qformer\.(embeddings|qformer\.encoder\.layer\.\d+\.(intermediate|output))\.")
_MODULES = {"vision": "vision", "qformer": "qformer", "language_projection": "projection", "llama": "llama"}


@dataclass(frozen=True)
class Group:
    """Weights (names in `Objectives.named_parameters()`) that learn at `share` of the rate, with or without decay."""

    name: str
    names: tuple[str, ...]
    share: float
    decay: bool


def learnable(objectives: Objectives, recipe: Recipe) -> list[Group]:
    """Freezes, stills and shrinks what does not learn, and returns what does. Call it before DDP or FSDP, after LoRA.

    Raises BadConfig when `learn` names what is not there or what no loss reaches, or when nothing learns.
    """
    weights = dict(objectives.named_parameters())
    shares = _shares(weights, recipe)
    _check(shares, weights, objectives, recipe)
    members: dict[tuple[str, float, bool], list[str]] = {}
    for name, weight in weights.items():
        group, share = shares.get(name, ("heads", 1.0))
        learns = share > 0 and _is_reached(name, objectives, recipe) and not name.endswith(_IDLE)
        weight.requires_grad_(learns)
        if learns:
            members.setdefault((group, share, weight.ndim >= 2), []).append(name)
    if not any(group != "heads" for group, _, _ in members):
        raise BadConfig(f"stage {recipe.stage!r}: nothing of the model learns; give a part of it a share in learn")
    objectives.train(objectives.training)
    if recipe.compute.precision == "bfloat16":
        _shrink(objectives)
    return [
        Group(group + ("" if decay else " (no decay)"), tuple(names), share, decay)
        for (group, share, decay), names in members.items()
    ]


def unreached(objectives: Objectives, recipe: Recipe) -> list[str]:
    """Names of weights that get no gradient from any of the recipe's losses, whatever `learn` says."""
    return [name for name, _ in objectives.named_parameters() if not _is_reached(name, objectives, recipe)]


def _part_name(name: str) -> str | None:
    """A weight's name as recipes call it: `model.language_projection.bias` is `projection.bias`; None for heads."""
    if not name.startswith("model."):
        return None
    module, _, rest = name.removeprefix("model.").partition(".")
    return f"{_MODULES[module]}.{rest}"


def _shares(weights: dict[str, nn.Parameter], recipe: Recipe) -> dict[str, tuple[str, float]]:
    """Of each weight of the model: the name in `learn` that decides, and its share."""
    shares: dict[str, tuple[str, float]] = {}
    for name in weights:
        if (part := _part_name(name)) is None:
            continue
        fitting = [prefix for prefix in recipe.learn if f"{part}.".startswith(f"{prefix}.")]
        chosen = max(fitting, key=len, default="")
        held = recipe.lora is not None and part.startswith("llama.") and _ADAPTER not in part
        shares[name] = (chosen, 0.0 if held else recipe.learn.get(chosen, 0.0))
    return shares


def _check(
    shares: dict[str, tuple[str, float]], weights: dict[str, nn.Parameter], objectives: Objectives, recipe: Recipe
) -> None:
    parts = [part for part in map(_part_name, weights) if part is not None]
    for prefix, share in recipe.learn.items():
        if share < 0:
            raise BadConfig(f"learn.{prefix} is {share}: a share of the rate is 0 or more")
        if not any(f"{part}.".startswith(f"{prefix}.") for part in parts):
            raise BadConfig(f"learn names {prefix!r}, but the model has no such part (or it is not loaded)")
        mine = [name for name, (chosen, _) in shares.items() if chosen == prefix]
        if share > 0 and mine and not any(_is_reached(name, objectives, recipe) for name in mine):
            cached = f" with cached {recipe.images.cache}" if recipe.images.cache != "none" else ""
            raise BadConfig(f"learn names {prefix!r}, which the losses {', '.join(recipe.losses)}{cached} do not reach")
    if recipe.lora is None:
        return
    if not any(_ADAPTER in part for part in parts):
        raise BadConfig("the recipe has lora, but no adapters were attached to the model's llama")
    if recipe.learn.get("llama", 0.0) <= 0:
        raise BadConfig("the recipe has lora, but learn gives llama no share of the rate")


def _is_reached(name: str, objectives: Objectives, recipe: Recipe) -> bool:
    """By the structure of the losses (objectives.py); a test holds it against the gradients themselves."""
    losses, cache, part = set(recipe.losses), recipe.images.cache, _part_name(name)
    if part is None:
        return name != "temperature" or "itc" in losses
    if part.startswith("vision."):
        return cache == "none"
    if part.startswith("qformer."):
        return cache != "tokens" and _reaches_qformer(part, losses, objectives.model.config.qformer_reads_instruction)
    return "lm" in losses


def _reaches_qformer(part: str, losses: set[str], reads_instruction: bool) -> bool:
    if part.startswith(("qformer.vision_projection.", "qformer.text_projection.")):
        return "itc" in losses
    if part.startswith("qformer.itm_head."):
        return "itm" in losses
    if _TEXT_BRANCH.match(part):
        return bool(losses & {"itc", "itm", "itg"}) or ("lm" in losses and reads_instruction)
    return bool(losses - {"classify"})


@torch.no_grad()
def _shrink(objectives: Objectives) -> None:
    """Frozen matrices in bfloat16; norms and biases are small and stay float32, and so does all that learns."""
    frozen: Sequence[nn.Parameter] = [weight for weight in objectives.parameters() if not weight.requires_grad]
    for weight in frozen:
        if weight.ndim >= 2 and weight.is_floating_point():
            weight.data = weight.data.to(torch.bfloat16)
