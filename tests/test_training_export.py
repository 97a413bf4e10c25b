"""What training leaves behind is what serving loads: equal outputs, and untouched parts byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from tests import tiny
from training import lora
from training.errors import BadConfig
from training.export import export
from training.model import VisualLanguageModel
from training.recipe import Lora
from ziya.checkpoint import fingerprint, read_config, verify_part
from ziya.model.llama import load_llama
from ziya.model.qformer import QFormer
from ziya.model.vision import VisionEncoder

PIXELS = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
FEATURES = np.random.default_rng(1).standard_normal((2, 17, 32)).astype(np.float32)
TEXTS = ((2, 5, 6, 3), (2, 7, 3))


@pytest.fixture(scope="module", params=["plain", "full", "tied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with no text branch, one with instruction and retrieval, and one whose LLaMA's head is tied."""
    full = request.param == "full"
    folder = tmp_path_factory.mktemp("base") / "model"
    tiny.build_checkpoint(folder, reads_instruction=full, retrieval=full, tied=request.param == "tied")
    extra = folder / "llama" / "tokenizer.model"
    extra.write_bytes(b"kept as it is")
    return resealed(folder)


def resealed(folder: Path) -> Path:
    """The same with a fingerprint for what was laid into it."""
    config = read_config(folder)
    fingerprints = {part: fingerprint(folder / part) for part in config.fingerprints}
    (folder / "config.json").write_text(replace(config, fingerprints=fingerprints).to_json(), "utf-8")
    return folder


def trained(base: Path, *parts: str) -> VisualLanguageModel:
    """The model of `base` with every number of these parts a little changed."""
    model = VisualLanguageModel.load(base).eval()
    modules = {"projection": model.language_projection}
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part in parts:
            module = modules.get(part) or getattr(model, part)
            for weight in module.parameters():
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return model


def left(base: Path, target: Path) -> set[str]:
    """Parts of `target` that are those of `base`."""
    before, after = read_config(base).fingerprints, read_config(target).fingerprints
    for part in after:
        verify_part(target, part, read_config(target))
    return {part for part in after if after[part] == before[part]}


def kinds(folder: Path) -> set[torch.dtype]:
    found = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize(
    ("learned", "untouched"),
    [
        ((), {"vision", "qformer", "llama"}),
        (("vision",), {"qformer", "llama"}),
        (("qformer",), {"vision", "llama"}),
        (("qformer", "projection"), {"vision"}),
        (("projection",), {"vision", "qformer"}),
        (("llama",), {"vision", "qformer"}),
        (("vision", "qformer", "projection", "llama"), set()),
    ],
)
def test_only_what_learned_is_written_anew(
    base: Path, tmp_path: Path, learned: tuple[str, ...], untouched: set[str]
) -> None:
    model = trained(base, *learned)
    config = export(model, base, tmp_path / "out", learned=learned, dtype=torch.float32, name="next")
    assert left(base, tmp_path / "out") == untouched
    assert config is not None
    assert config == read_config(tmp_path / "out")
    assert replace(config, name="ziya-test", fingerprints={}) == replace(read_config(base), fingerprints={})
    assert (tmp_path / "out" / "llama" / "tokenizer.model").read_bytes() == b"kept as it is"


def test_serving_loads_what_was_trained(base: Path, tmp_path: Path) -> None:
    model = trained(base, "vision", "qformer", "projection", "llama")
    out = tmp_path / "out"
    export(model, base, out, learned=("vision", "qformer", "projection", "llama"), dtype=torch.float32)
    with torch.no_grad():
        features = model.features(torch.from_numpy(PIXELS)).half().numpy()
    np.testing.assert_array_equal(VisionEncoder.load(out)(PIXELS), features)
    assert_same_qformer(model, QFormer.load(out))
    weights = load_llama(out)
    assert model.llama is not None
    assert model.language_projection is not None
    assert set(weights.tensors) == set(model.llama.state_dict())
    assert all(torch.equal(weights.tensors[name], one) for name, one in model.llama.state_dict().items())
    assert torch.equal(weights.projection_weight, model.language_projection.weight)
    assert torch.equal(weights.projection_bias, model.language_projection.bias)


def assert_same_qformer(model: VisualLanguageModel, served: QFormer) -> None:
    module = model.qformer
    assert module is not None
    features = torch.from_numpy(FEATURES)
    ids, mask = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.no_grad():
        if not model.config.retrieval:
            np.testing.assert_array_equal(served(FEATURES), module.query(features).half().numpy())
            return
        np.testing.assert_array_equal(served(FEATURES, TEXTS), module.query(features, ids, mask).half().numpy())
        np.testing.assert_array_equal(served.embed_image(FEATURES), module.embed_image(features).numpy())
        np.testing.assert_array_equal(served.embed_text(TEXTS), module.embed_text(ids, mask).numpy())
        np.testing.assert_array_equal(served.match(FEATURES, TEXTS), module.match(features, ids, mask).numpy())
    assert served.tokenize("a cat")


def test_adapters_are_merged(base: Path, tmp_path: Path) -> None:
    model = trained(base)
    assert model.llama is not None
    lora.attach(model.llama, Lora(rank=2, alpha=4.0), seed=0)
    with torch.no_grad():
        for name, weight in model.llama.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(weight, std=0.3)
        ids = torch.arange(3, 12)[None]
        said = model.llama.eval()(input_ids=ids).logits
    merged = lora.merged_state(model.llama)
    export(model, base, tmp_path / "out", learned=("llama",), llama_tensors=merged, dtype=torch.float32)
    again = VisualLanguageModel.load(tmp_path / "out").llama
    assert again is not None
    with torch.no_grad():
        assert torch.allclose(again.eval()(input_ids=ids).logits, said, atol=1e-4)


def test_bfloat16_is_written_where_it_is_asked_for(base: Path, tmp_path: Path) -> None:
    model = trained(base, "qformer", "llama")
    export(model, base, tmp_path / "out", learned=("qformer", "llama"))
    found = {part: kinds(tmp_path / "out" / part) for part in ("vision", "qformer", "llama")}
    assert found == {"vision": {torch.float32}, "qformer": {torch.bfloat16}, "llama": {torch.bfloat16}}


def test_a_llama_that_did_not_learn_keeps_every_bit(base: Path, tmp_path: Path) -> None:
    model = trained(base, "projection").to(torch.bfloat16)
    export(model, base, tmp_path / "out", learned=("projection",))
    before, after = load_llama(base).tensors, load_llama(tmp_path / "out").tensors
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert not torch.equal(load_llama(base).projection_weight, load_llama(tmp_path / "out").projection_weight)


SHARDED = """
import sys
from pathlib import Path
import torch
from tests.micro_batches import recipe
from training import lora
from training.distributed import join, spread
from training.export import export
from training.learning import learnable
from training.model import VisualLanguageModel
from training.objectives import Objectives
from training.recipe import Compute, Lora

base, out = Path(sys.argv[1]), Path(sys.argv[2])
sharded = Compute(precision="float32", strategy="fsdp")
parts = {"vision": 1.0, "qformer": 1.0, "projection": 1.0, "llama": 1.0}
how = recipe("lm", learn=parts, compute=sharded, lora=Lora(rank=2))
with join(60) as world:
    model = VisualLanguageModel.load(base)
    lora.attach(model.llama, how.lora, how.seed)
    objectives = Objectives(model, how, {})
    learnable(objectives, how)
    spread(objectives, objectives.blocks(), how.compute, world)
    merged = lora.merged_state(model.llama)
    lora.save_adapter(model.llama, out / "adapter", write=world.rank == 0)
    target, writes = out / "model", world.rank == 0
    export(model, base, target, learned=parts, llama_tensors=merged, dtype=torch.float32, write=writes)
    world.barrier()
"""


def test_sharded_weights_are_put_together(tmp_path: Path) -> None:
    base = tiny.build_checkpoint(tmp_path / "base")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = tmp_path / "export.py"
    script.write_text(SHARDED, "utf-8")
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, *command, str(script), str(base), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = VisualLanguageModel.load(base), VisualLanguageModel.load(tmp_path / "model")
    own = before.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in after.state_dict().items())
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_a_part_that_is_not_loaded_cannot_have_learned(base: Path, tmp_path: Path) -> None:
    model = VisualLanguageModel.load(base, parts=("vision",))
    with pytest.raises(BadConfig, match="qformer"):
        export(model, base, tmp_path / "out", learned=("vision", "qformer"))
    assert not (tmp_path / "out").exists()
