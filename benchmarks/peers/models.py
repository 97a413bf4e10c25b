"""The same random weights in the layout of each engine.

checkpoint/              this project's own (benchmarks/random_checkpoint.py), the source of the others
blip2/                   transformers' and vLLM's whole model, as `ziya convert --to-hf` writes it
llama/                   its language model alone
openvino-bf16/, -int8/   llama/ for OpenVINO
llama-bf16.gguf, -q8_0   llama/ for llama.cpp
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks import random_checkpoint
from benchmarks.peers.child import ROOT
from benchmarks.peers.environments import python
from ziya.model.export import export


def make(folder: Path, environments: Path, say: Callable[[str], None]) -> None:
    """Writes what is missing in `folder`. Raises CalledProcessError when an export fails."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = random_checkpoint.build(folder / "checkpoint")
    if not (folder / "blip2").is_dir():
        export(checkpoint, folder / "blip2")
    if not (folder / "llama").is_dir():
        _language_model(checkpoint, folder / "blip2", folder / "llama")
    for precision in ("bf16", "int8"):
        _export("openvino", folder, f"openvino-{precision}", precision, environments)
    for kind in ("bf16", "q8_0"):
        _export("llamacpp", folder, f"llama-{kind}.gguf", kind, environments)
    say(f"{folder} is complete")


def _language_model(checkpoint: Path, whole: Path, target: Path) -> None:
    """The checkpoint's llama/ has transformers' layout already; what is missing is in the whole model's folder."""
    draft = target.with_suffix(".new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    shutil.copy(checkpoint / "llama" / "model.safetensors", draft)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(whole / name, draft)
    text = json.loads((whole / "config.json").read_text("utf-8"))["text_config"]
    (draft / "config.json").write_text(json.dumps({**text, "dtype": "bfloat16"}, indent=2), "utf-8")
    draft.rename(target)


def _export(peer: str, folder: Path, name: str, kind: str, environments: Path) -> None:
    target, draft = folder / name, folder / f"new-{name}"
    if target.exists():
        return
    module = {"openvino": "export_openvino", "llamacpp": "export_gguf"}[peer]
    interpreter, source = str(python(environments, peer)), str(folder / "llama")
    subprocess.run([interpreter, "-m", f"benchmarks.peers.{module}", source, str(draft), kind], check=True, cwd=ROOT)
    draft.rename(target)
