"""A LLaMA of transformers' layout as OpenVINO's, with its tokenizer. Run in OpenVINO's environment.

    python -m benchmarks.peers.export_openvino FOLDER TARGET bf16|int8

"bf16" keeps the weights in 16 bits, and the engine is told to compute in bfloat16; int8 quantises weights alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from openvino import save_model
from openvino_tokenizers import convert_tokenizer
from optimum.intel import OVModelForCausalLM
from transformers import AutoTokenizer


def main() -> None:
    folder, target, precision = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    model = OVModelForCausalLM.from_pretrained(folder, export=True, compile=False, load_in_8bit=precision == "int8")
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(target)
    there, back = convert_tokenizer(tokenizer, with_detokenizer=True)
    save_model(there, target / "openvino_tokenizer.xml")
    save_model(back, target / "openvino_detokenizer.xml")


if __name__ == "__main__":
    main()
