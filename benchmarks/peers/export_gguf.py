"""A LLaMA of transformers' layout as a GGUF file. Run in llama.cpp's environment, which has no torch.

    python -m benchmarks.peers.export_gguf FOLDER FILE.gguf bf16|q8_0

The order of names and of the rotated rows is llama.cpp's own (its convert_hf_to_gguf.py, of which this is the part
that one small checkpoint needs).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

KINDS = {"bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Array = npt.NDArray[np.float32]


def read(path: Path) -> dict[str, Array]:
    """All tensors of a safetensors file in bfloat16, which numpy does not know: the upper half of a float32."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, data, tensors = json.loads(raw[8 : 8 + size]), raw[8 + size :], {}
    for name, entry in header.items():
        if name != "__metadata__":
            if entry["dtype"] != "BF16":
                raise ValueError(f"{path}: {name} is {entry['dtype']}, not BF16")
            halves = np.frombuffer(data[slice(*entry["data_offsets"])], np.uint16).astype(np.uint32)
            tensors[name] = (halves << 16).view(np.float32).reshape(entry["shape"])
    return tensors


def new_name(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight"""
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        layer, _, inner = stem.removeprefix("model.layers.").partition(".")
        return f"blk.{layer}.{IN_LAYER[inner]}.weight"
    return f"{OUTSIDE[stem]}.weight"


def interleave(weight: Array, heads: int) -> Array:
    """Rows of the halves that transformers rotates with one another, side by side, as llama.cpp rotates them."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def describe(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])


def add_tokenizer(writer: gguf.GGUFWriter, raw: dict[str, Any], config: dict[str, Any]) -> None:
    """A byte-level BPE; rows of the embeddings that no token has get a name of their own."""
    numbers = dict(raw["model"]["vocab"]) | {token["content"]: token["id"] for token in raw["added_tokens"]}
    texts = {number: text for text, number in numbers.items()}
    special = {token["id"] for token in raw["added_tokens"]}
    kinds = [gguf.TokenType.CONTROL if n in special else gguf.TokenType.NORMAL for n in range(config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([texts.get(number, f"<unused_{number}>") for number in range(config["vocab_size"])])
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in raw["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def main() -> None:
    folder, target, kind = Path(sys.argv[1]), Path(sys.argv[2]), KINDS[sys.argv[3]]
    config = json.loads((folder / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(target, "llama")
    describe(writer, config)
    add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text("utf-8")), config)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, tensor in read(folder / "model.safetensors").items():
        rotated = next((count for part, count in heads.items() if part in name), None)
        weight = np.ascontiguousarray(tensor if rotated is None else interleave(tensor, rotated))
        if weight.ndim == 1:
            writer.add_tensor(new_name(name), weight)
        else:
            writer.add_tensor(new_name(name), gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
