"""Our wiring against transformers' whole models, same small weights, float32; and the full shape without weights."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.blip_2.configuration_blip_2 import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig
from transformers.models.blip_2.modeling_blip_2 import (
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2VisionModel,
)
from transformers.models.instructblip.configuration_instructblip import InstructBlipConfig
from transformers.models.instructblip.modeling_instructblip import InstructBlipForConditionalGeneration

from tests import tiny
from ziya.checkpoint import read_config
from ziya.model.layout import (
    LlamaShape,
    QFormerShape,
    Table,
    VisionShape,
    llama_table,
    projection_table,
    qformer_table,
    vision_table,
)
from ziya.model.llama import load_llama
from ziya.model.preprocessing import Preprocessing
from ziya.model.qformer import QFormer, QFormerModule, load_qformer
from ziya.model.vision import VisionEncoder, load_vision

TEXTS = ("what is this?", "这是一只猫")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_checkpoint(tmp_path_factory.mktemp("checkpoints") / "plain")


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_checkpoint(tmp_path_factory.mktemp("checkpoints") / "instruct", reads_instruction=True)


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_checkpoint(tmp_path_factory.mktemp("checkpoints") / "retrieval", retrieval=True)


def pixels(batch: int = 2, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(batch, 3, 32, 32)).astype(np.float32)


def modules(folder: Path) -> tuple[Blip2VisionModel, QFormerModule]:
    config = read_config(folder)
    vision, _ = load_vision(folder / "vision")
    return vision.eval(), load_qformer(folder / "qformer", config).eval()


def state_of(folder: Path) -> dict[str, Tensor]:
    """Vision and Q-Former in the names of a whole BLIP-2 model."""
    vision, qformer = modules(folder)
    return {f"vision_model.{name}": tensor for name, tensor in vision.state_dict().items()} | qformer.state_dict()


def close(ours: NDArray[np.floating[Any]], theirs: Tensor) -> bool:
    """Equal up to float16, in which our arrays travel."""
    return np.allclose(ours.astype(np.float32), theirs.numpy(), atol=2e-3, rtol=1e-3)


# ── parity ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_vision_and_queries_are_those_of_blip2(plain: Path, attention: str) -> None:
    vision, qformer = modules(plain)
    config = Blip2Config(
        vision_config=vision.config.to_dict(),
        qformer_config=qformer.config.to_dict(),
        text_config=tiny.llama_config(300).to_dict(),
        num_query_tokens=tiny.QUERIES,
    )
    model = Blip2ForConditionalGeneration(config).eval()
    missing, unexpected = model.load_state_dict(state_of(plain), strict=False)
    assert not unexpected
    assert all(name.startswith(("language_model", "language_projection")) for name in missing)
    with torch.inference_mode():
        theirs = model.get_image_features(torch.from_numpy(pixels()))
    features = VisionEncoder.load(plain, attention=attention)(pixels())
    assert close(features, theirs.last_hidden_state)
    tokens = QFormer.load(plain, attention=attention)(theirs.last_hidden_state.numpy())
    assert close(tokens, theirs.qformer_outputs.last_hidden_state)
    assert tokens.dtype == features.dtype == np.float16


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_instruction_is_read_as_instructblip_reads_it(instruct: Path, attention: str) -> None:
    vision, qformer = modules(instruct)
    config = InstructBlipConfig(
        vision_config={**vision.config.to_dict(), "model_type": "instructblip_vision_model"},
        qformer_config={**qformer.config.to_dict(), "model_type": "instructblip_qformer"},
        text_config=tiny.llama_config(300).to_dict(),
        num_query_tokens=tiny.QUERIES,
    )
    model = InstructBlipForConditionalGeneration(config).eval()
    state = {
        re.sub(
            "^embeddings", "qformer.embeddings", re.sub("^qformer.layernorm", "qformer.embeddings.layernorm", name)
        ): tensor
        for name, tensor in state_of(instruct).items()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith(("language_model", "language_projection")) for name in missing)

    ours = QFormer.load(instruct, attention=attention)
    ids = [ours.tokenize(text) for text in TEXTS]
    padded = torch.zeros(2, max(map(len, ids)), dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, tokens in enumerate(ids):
        padded[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
    with torch.inference_mode():
        theirs = model.get_image_features(torch.from_numpy(pixels()), padded, mask)
    features = theirs.last_hidden_state.numpy()
    assert close(ours(features, ids), theirs.qformer_outputs.last_hidden_state[:, : tiny.QUERIES])


def test_the_instruction_matters_and_the_batch_does_not(instruct: Path) -> None:
    qformer, features = QFormer.load(instruct), VisionEncoder.load(instruct)(pixels())
    ids = [qformer.tokenize(text) for text in TEXTS]
    together = qformer(features, ids)
    alone = np.concatenate([qformer(features[row : row + 1], [ids[row]]) for row in range(2)])
    assert np.allclose(together, alone, atol=2e-3)
    assert not np.allclose(together[0], qformer(features[:1], [ids[1]])[0], atol=1e-2)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_retrieval_heads_are_those_of_blip2(retrieval: Path, attention: str) -> None:
    vision, qformer = modules(retrieval)
    config = Blip2Config(
        vision_config=vision.config.to_dict(),
        qformer_config=qformer.config.to_dict(),
        text_config=tiny.llama_config(300).to_dict(),
        num_query_tokens=tiny.QUERIES,
        image_text_hidden_size=16,
    )
    model = Blip2ForImageTextRetrieval(config).eval()
    model.load_state_dict(state_of(retrieval))
    ours = QFormer.load(retrieval, attention=attention)
    ids = ours.tokenize(TEXTS[0])
    inputs = {
        "pixel_values": torch.from_numpy(pixels()),
        "input_ids": torch.tensor([ids, ids]),
        "attention_mask": torch.ones(2, len(ids), dtype=torch.long),
    }
    with torch.inference_mode():
        contrast = model(**inputs)
        matching = model(**inputs, use_image_text_matching_head=True)
        features = model.vision_model(torch.from_numpy(pixels())).last_hidden_state.numpy()
    images, texts = ours.embed_image(features), ours.embed_text([ids, ids])
    assert np.allclose(images, contrast.image_embeds.numpy(), atol=1e-5)
    assert np.allclose(texts, contrast.text_embeds.numpy(), atol=1e-5)
    assert np.allclose((images @ texts.T).max(axis=1), contrast.logits_per_image.numpy(), atol=1e-5)
    assert np.allclose(ours.match(features, [ids, ids]), matching.logits_per_image.numpy(), atol=1e-5)


def test_retrieval_texts_of_different_lengths_do_not_touch_one_another(retrieval: Path) -> None:
    qformer, features = QFormer.load(retrieval), VisionEncoder.load(retrieval)(pixels())
    ids = [qformer.tokenize(text) for text in TEXTS]
    alone = [qformer.embed_text([row])[0] for row in ids]
    assert np.allclose(qformer.embed_text(ids), alone, atol=1e-5)
    pairs = [qformer.match(features[row : row + 1], [ids[row]])[0] for row in range(2)]
    assert np.allclose(qformer.match(features, ids), pairs, atol=1e-5)
    # Without instruction reading the visual tokens do not depend on any text.
    assert qformer(features).shape == (2, tiny.QUERIES, 32)


def test_llama_tensors_are_those_of_transformers(plain: Path, tmp_path: Path) -> None:
    weights = load_llama(plain)
    model = LlamaForCausalLM(tiny.llama_config(weights.shape.vocab))
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in weights.tensors.items()
    }
    assert weights.shape.eos_ids == (2,)
    tied = load_llama(tiny.build_checkpoint(tmp_path / "tied", tied=True, shard_bytes=50_000))
    assert tied.shape.tied
    assert tied.tensors["lm_head.weight"] is tied.tensors["model.embed_tokens.weight"]
    assert len(list((tmp_path / "tied" / "llama").glob("model-*.safetensors"))) > 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_float32(retrieval: Path, dtype: torch.dtype) -> None:
    exact, rough = VisionEncoder.load(retrieval)(pixels()), VisionEncoder.load(retrieval, dtype=dtype)(pixels())
    assert np.abs(exact.astype(np.float32) - rough.astype(np.float32)).mean() < 0.02
    one, other = QFormer.load(retrieval), QFormer.load(retrieval, dtype=dtype)
    assert np.abs(one(exact).astype(np.float32) - other(exact).astype(np.float32)).mean() < 0.03
    assert load_llama(retrieval, dtype=dtype).projection_weight.dtype == dtype


def test_wrong_shapes_are_refused_with_the_right_ones(plain: Path, instruct: Path) -> None:
    with pytest.raises(ValueError, match=r"\[batch, 3, 32, 32\]"):
        VisionEncoder.load(plain)(np.zeros((1, 3, 16, 16), np.float32))
    with pytest.raises(ValueError, match=r"\[batch, patches, 32\]"):
        QFormer.load(plain)(np.zeros((1, 17, 16), np.float16))
    with pytest.raises(ValueError, match="reads the instruction"):
        QFormer.load(instruct)(np.zeros((1, 17, 32), np.float16))
    with pytest.raises(ValueError, match="no retrieval heads"):
        QFormer.load(plain).embed_text([[1]])
    with pytest.raises(ValueError, match="reads no text"):
        QFormer.load(plain).tokenize("hello")


def test_long_instructions_keep_their_end(instruct: Path) -> None:
    qformer = QFormer.load(instruct)
    ids = qformer.tokenize("a" + " what" * 200 + " is this?")
    assert len(ids) == 128
    assert ids[-3:] == qformer.tokenize("this?")[-3:]


# ── preprocessing ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", [(32, 32), (224, 224), (480, 640), (17, 999), (999, 17), (1, 1), (3, 700)])
@pytest.mark.parametrize("size", [32, 224])
def test_preprocessing_is_that_of_transformers(shape: tuple[int, int], size: int, tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    ours = Preprocessing(size)
    (tmp_path / "preprocessor_config.json").write_text(ours.to_json())
    theirs = BlipImageProcessorPil.from_pretrained(tmp_path)
    expected = theirs(image, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
    assert Preprocessing.read(tmp_path / "preprocessor_config.json") == ours
    assert np.array_equal(ours(image), expected)


# ── the full shape, on the meta device ───────────────────────────────────────────────────────────────────────


def release_a() -> Table:
    """Every tensor of Ziya-BLIP2-14B-Visual-v1's file, as its published layout lists them."""
    table: Table = {"query_tokens": (1, 32, 768)}
    table["vision_model.embeddings.class_embedding"] = (1, 1, 1408)
    table["vision_model.embeddings.position_embedding"] = (1, 257, 1408)
    table["vision_model.embeddings.patch_embedding.weight"] = (1408, 3, 14, 14)
    table["vision_model.embeddings.patch_embedding.bias"] = (1408,)
    for i in range(39):
        layer = f"vision_model.encoder.layers.{i}"
        for name, shape in {
            "self_attn.qkv": (4224, 1408),
            "self_attn.projection": (1408, 1408),
            "mlp.fc1": (6144, 1408),
            "mlp.fc2": (1408, 6144),
            "layer_norm1": (1408,),
            "layer_norm2": (1408,),
        }.items():
            table[f"{layer}.{name}.weight"], table[f"{layer}.{name}.bias"] = shape, shape[:1]
    for name in ("vision_model.post_layernorm", "qformer.layernorm"):
        width = 1408 if name.startswith("vision") else 768
        table[f"{name}.weight"] = table[f"{name}.bias"] = (width,)
    for i in range(12):
        layer = f"qformer.encoder.layer.{i}"
        for kind in ("attention", "crossattention") if i % 2 == 0 else ("attention",):
            source = 768 if kind == "attention" else 1408
            for name, columns in {"query": 768, "key": source, "value": source}.items():
                table[f"{layer}.{kind}.attention.{name}.weight"] = (768, columns)
                table[f"{layer}.{kind}.attention.{name}.bias"] = (768,)
            table[f"{layer}.{kind}.output.dense.weight"] = (768, 768)
            for name in ("dense.bias", "LayerNorm.weight", "LayerNorm.bias"):
                table[f"{layer}.{kind}.output.{name}"] = (768,)
        table[f"{layer}.intermediate_query.dense.weight"] = (3072, 768)
        table[f"{layer}.intermediate_query.dense.bias"] = (3072,)
        table[f"{layer}.output_query.dense.weight"] = (768, 3072)
        for name in ("dense.bias", "LayerNorm.weight", "LayerNorm.bias"):
            table[f"{layer}.output_query.{name}"] = (768,)
    table["language_projection.weight"], table["language_projection.bias"] = (5120, 768), (5120,)
    return table


def shapes(module: torch.nn.Module, prefix: str = "") -> Table:
    return {prefix + name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def test_the_full_size_vision_part_is_release_a() -> None:
    with torch.device("meta"):
        vision = Blip2VisionModel(Blip2VisionConfig())
        qformer = QFormerModule(Blip2QFormerConfig(), queries=32)
        projection = torch.nn.Linear(768, 5120)
    built = shapes(vision, "vision_model.") | shapes(qformer) | shapes(projection, "language_projection.")
    assert built == release_a()
    assert sum(map(math.prod, built.values())) == 1_095_051_776
    tables = {f"vision_model.{name}": shape for name, shape in vision_table(VisionShape()).items()}
    tables |= qformer_table(QFormerShape(), queries=32) | projection_table(768, 5120)
    assert tables == built


def test_the_full_size_llama_is_ziya_llama_13b() -> None:
    config = LlamaConfig(
        vocab_size=39424,
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    shape = LlamaShape(5120, 40, 40, 40, 128, 13824, 39424, 1e-6, 10000.0, 2048)
    assert shapes(model) == llama_table(shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == 13_091_886_080


@pytest.mark.parametrize("retrieval", [False, True])
def test_the_full_size_text_branch_is_in_the_table(retrieval: bool) -> None:
    config = Blip2QFormerConfig(vocab_size=30523, use_qformer_text_input=True)  # BERT's and [DEC]
    with torch.device("meta"):
        module = QFormerModule(config, queries=32, retrieval=retrieval)
    shape = QFormerShape.of(config.to_dict())
    assert shapes(module) == qformer_table(shape, queries=32, retrieval=retrieval)
    if not retrieval:
        assert sum(map(math.prod, shapes(module).values())) == 185_660_160 + 32 * 768


def test_fresh_queries_differ_from_one_another() -> None:
    module = QFormerModule(tiny.qformer_config(), queries=4)
    assert 0.005 < float(module.query_tokens.detach().std()) < 0.05


def test_the_engine_loads_weights_without_transformers(plain: Path) -> None:
    """Importing transformers takes seconds, which a restarted engine should not wait for."""
    code = (
        "import sys; from pathlib import Path; from ziya.model.llama import load_llama;"
        "load_llama(Path(sys.argv[1])); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(plain)], check=True, timeout=60)
