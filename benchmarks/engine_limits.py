"""How fast a decoder could be on this machine at most: by the memory that it must read, by the sums that it must do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.workload import NEW, PROMPT

BYTES_A_WEIGHT = {"bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Cost:
    """Of a LLaMA with one vocabulary matrix at both ends: weights in its layers, in its head, and its attention."""

    layers: int
    hidden: int
    layer_weights: int
    head_weights: int

    @classmethod
    def of(cls, folder: Path) -> Cost:
        """From transformers' config.json in `folder`."""
        raw = json.loads((folder / "config.json").read_text("utf-8"))
        hidden, head_dim = raw["hidden_size"], raw["hidden_size"] // raw["num_attention_heads"]
        attention = 2 * hidden * head_dim * (raw["num_attention_heads"] + raw["num_key_value_heads"])
        layer = attention + 3 * hidden * raw["intermediate_size"]
        return cls(raw["num_hidden_layers"], hidden, raw["num_hidden_layers"] * layer, raw["vocab_size"] * hidden)

    def step_bytes(self, precision: str) -> int:
        """What every decode step reads, however many requests are in it. Scales of int8 are not counted."""
        return BYTES_A_WEIGHT[precision] * (self.layer_weights + self.head_weights)

    def request_operations(self) -> float:
        """Of a whole request: every position but the last token's passes the layers, each new token the head."""
        positions = PROMPT + NEW - 1
        attention = 4 * self.layers * self.hidden * positions * (positions + 1) / 2
        return 2.0 * (self.layer_weights * positions + self.head_weights * NEW) + attention


def by_memory(cost: Cost, precision: str, requests: int, bytes_per_second: float) -> float:
    """Tokens a second if nothing took time but reading the weights, once a step; the prompt's step left out."""
    return requests * bytes_per_second / cost.step_bytes(precision)


def by_arithmetic(cost: Cost, operations_per_second: float) -> float:
    """Tokens a second if all sums, the prompt's too, went at the rate of one large product."""
    return NEW * operations_per_second / cost.request_operations()
