"""LoRA adapters (arXiv 2106.09685): small low-rank changes of a layer's matrices, read from peft's own files.

An adapter is loaded beside the model and changes only the rows of those who ask for it. What peft can write and this
engine does not compute is refused by its name in adapter_config.json: running it anyway would give plausible nonsense.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ziya.errors import InvalidRequest
from ziya.model.layout import LlamaShape, llama_table

MAX_RANK = 256
PROJECTIONS = {
    **{f"self_attn.{name}_proj": name for name in ("q", "k", "v", "o")},
    **{f"mlp.{name}_proj": name for name in ("gate", "up", "down")},
}
# what must be off, and how it looks when it is
_OFF: dict[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "fan_in_fan_out": (None, False),
    "lora_bias": (None, False),
    "bias": (None, "none"),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
}
_NAME = re.compile(r"base_model\.model\.(model\.layers\.(\d+)\.((?:self_attn|mlp)\.\w+))\.lora_([AB])\.weight")
_loads = itertools.count(1)


@dataclass(frozen=True)
class LowRank:
    """A matrix is changed by `scale * up @ down`: `down` is A, [rank, in], and `up` is B, [out, rank]; contiguous."""

    down: Tensor
    up: Tensor
    scale: float


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """For each layer, the changed projections by name: q, k, v, o, gate, up, down; in the model's dtype.

    `lineage` is new for each loading, so that keys and values are never reused under other weights of that name.
    """

    name: str
    layers: tuple[Mapping[str, LowRank], ...]
    lineage: bytes


def read_adapter(name: str, folder: Path, shape: LlamaShape, dtype: torch.dtype, device: torch.device) -> LoraAdapter:
    """Raises InvalidRequest, naming what it is, for an adapter that is not for this model or cannot be computed."""
    config = _config(name, folder)
    try:
        tensors = load_file(folder / "adapter_model.safetensors", device=str(device))
    except (OSError, SafetensorError) as error:
        raise InvalidRequest(f"adapter {name}: adapter_model.safetensors cannot be read: {error}") from None
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _NAME.fullmatch(key)
        if match is None or int(match[2]) >= shape.layers or match[3] not in PROJECTIONS:
            raise InvalidRequest(f"adapter {name}: {key} has no place in this model")
        sides.setdefault(match[1], {})[match[4]] = tensor
    layers: list[dict[str, LowRank]] = [{} for _ in range(shape.layers)]
    widths = llama_table(shape)
    for module, pair in sides.items():
        _, _, layer, projection = module.split(".", 3)
        change = _low_rank(f"adapter {name}: {module}", pair, config, module, widths[f"{module}.weight"])
        layers[int(layer)][PROJECTIONS[projection]] = LowRank(
            change.down.to(dtype).contiguous(), change.up.to(dtype).contiguous(), change.scale
        )
    return LoraAdapter(name, tuple(layers), f"{next(_loads)}:{name}".encode())


def _config(name: str, folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"adapter {name}: adapter_config.json cannot be read: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise InvalidRequest(f"adapter {name}: adapter_config.json is not of a LoRA adapter")
    for key, off in _OFF.items():
        if config.get(key) not in off:
            raise InvalidRequest(f"adapter {name}: {key} {config[key]!r} is not supported")
    return config


def _low_rank(where: str, pair: dict[str, Tensor], config: dict[str, Any], module: str, widths: Any) -> LowRank:
    if set(pair) != {"A", "B"}:
        raise InvalidRequest(f"{where} has only one of lora_A and lora_B")
    down, up = pair["A"], pair["B"]
    rank = _pattern(config.get("rank_pattern"), module, config.get("r"))
    if not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
        raise InvalidRequest(f"{where} has rank {rank!r}; 1 to {MAX_RANK} are supported")
    wanted = [rank, widths[1]], [widths[0], rank]
    if [list(down.shape), list(up.shape)] != list(wanted):
        raise InvalidRequest(
            f"{where} has shapes {list(down.shape)} and {list(up.shape)}, not {wanted[0]} and {wanted[1]}"
        )
    if not (down.isfinite().all() and up.isfinite().all()):
        raise InvalidRequest(f"{where} holds values that are not finite")
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise InvalidRequest(f"{where} has lora_alpha {alpha!r}")
    return LowRank(down, up, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """A module's own value: peft takes the first pattern that its name ends in."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default
