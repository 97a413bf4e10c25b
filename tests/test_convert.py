"""Weights of other projects become a checkpoint that answers as they did, and a checkpoint becomes theirs."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoProcessor, LlamaForCausalLM
from transformers.models.blip_2.configuration_blip_2 import Blip2Config
from transformers.models.blip_2.modeling_blip_2 import Blip2ForConditionalGeneration
from transformers.models.instructblip.modeling_instructblip import InstructBlipForConditionalGeneration

from tests import tiny
from tests.reference import generate_from_tokens, reference_generate
from ziya.checkpoint import CheckpointError, fingerprint, read_config
from ziya.model.convert import convert
from ziya.model.export import export
from ziya.model.llama import load_llama
from ziya.model.llama_tokenizer import from_sentencepiece, read_tokenizer
from ziya.model.preprocessing import Preprocessing
from ziya.model.qformer import QFormer
from ziya.model.vision import VisionEncoder

TEXT = "<human>:what is this 猫\n<bot>:"
NEW = 16


def picture(seed: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (50, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("convert")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    return tiny.build_checkpoint(folder / "plain")


@pytest.fixture(scope="module")
def instruct(folder: Path) -> Path:
    return tiny.build_checkpoint(folder / "instruct", reads_instruction=True)


@pytest.fixture(scope="module")
def whole(folder: Path, plain: Path) -> Path:
    """A BLIP-2 folder as transformers itself writes it, and not our export: other weights, its own config."""
    config = Blip2Config(
        vision_config=tiny.vision_config().to_dict(),
        qformer_config=tiny.qformer_config().to_dict(),
        text_config=tiny.llama_config(tiny.llama_tokenizer().get_vocab_size()).to_dict(),
        num_query_tokens=tiny.QUERIES,
        initializer_range=tiny.INIT,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = Blip2ForConditionalGeneration(config)
        torch.nn.init.normal_(model.query_tokens)
    model.save_pretrained(folder / "whole", max_shard_size="200KB")
    shutil.copy(plain / "llama" / "tokenizer.json", folder / "whole")
    shutil.copy(plain / "vision" / "preprocessor_config.json", folder / "whole")
    return folder / "whole"


def state(source: Path) -> dict[str, Tensor]:
    return {name: tensor for path in sorted(source.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def copy_of(source: Path, target: Path, tensors: dict[str, Tensor], *, pickled: bool = False, **config: Any) -> Path:
    """A folder with the small files of `source` and other weights, in one file."""
    target.mkdir()
    for path in source.iterdir():
        if path.suffix == ".json" and "index" not in path.name:
            shutil.copy(path, target)
    edit(target / "config.json", **config)
    if pickled:
        torch.save(tensors, target / "pytorch_model.bin")
    else:
        torch.save(tensors, target / "pytorch_model-00001-of-00001.bin")
        index = {"weight_map": dict.fromkeys(tensors, "pytorch_model-00001-of-00001.bin")}
        (target / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return target


def edit(path: Path, **changes: Any) -> None:
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in (raw | changes).items() if value is not ...}))


def whole_answer(source: Path) -> list[int]:
    """What transformers' whole model says, its image placeholders taken from an unused id."""
    config = Blip2Config.from_pretrained(source, image_token_index=0)
    model = Blip2ForConditionalGeneration.from_pretrained(source, config=config).eval()
    tokenizer = read_tokenizer(source)
    ids = [0] * tiny.QUERIES + tokenizer.encode(TEXT, add_special_tokens=False).ids
    pixels = Preprocessing.read(source / "preprocessor_config.json")(picture())
    output = model.generate(
        pixel_values=torch.from_numpy(pixels)[None], input_ids=torch.tensor([ids]), max_new_tokens=NEW, do_sample=False
    )
    return [int(token) for token in output[0][len(ids) :]]


def answer(checkpoint: Path) -> list[int]:
    return reference_generate(checkpoint, [picture()], ["", TEXT], NEW, instruction=TEXT)


# ── to a checkpoint ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_blip2_folder_answers_as_before(whole: Path, tmp_path: Path) -> None:
    assert len(list(whole.glob("model-*.safetensors"))) > 1
    said: list[str] = []
    config = convert(whole, tmp_path / "checkpoint", progress=said.append, shard_bytes=100_000)
    assert answer(tmp_path / "checkpoint") == whole_answer(whole)
    assert (config.queries, config.llm_width, config.qformer_reads_instruction) == (tiny.QUERIES, 64, False)
    assert "BLIP-2, whole" in said[0]


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
@pytest.mark.parametrize("pickled", [True, False])
def test_other_prefixes_and_old_files_are_read(whole: Path, tmp_path: Path, prefix: str, pickled: bool) -> None:
    """Older transformers pickled the weights, saved rotary buffers, and wrote fewer config fields."""
    tensors = state(whole)
    if prefix.startswith("model."):
        tensors = {f"model.{name}" if not name.startswith("language_model.lm_head") else name: tensor
                   for name, tensor in tensors.items()}  # fmt: skip
    tensors[f"{prefix}layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    raw = json.loads((whole / "config.json").read_text())
    text = {name: value for name, value in raw["text_config"].items() if name not in ("rope_parameters", "head_dim")}
    old = copy_of(whole, tmp_path / "old", tensors, pickled=pickled, text_config=text)
    convert(old, tmp_path / "checkpoint")
    assert answer(tmp_path / "checkpoint") == whole_answer(whole)


def release_a(whole: Path, target: Path) -> tuple[Path, Path]:
    """The vision part and the LLaMA of `whole` as two folders, as Ziya's first release has them."""
    tensors = state(whole)
    vision = {name: tensor for name, tensor in tensors.items() if not name.startswith("language_model.")}
    raw = json.loads((whole / "config.json").read_text())
    target.mkdir()
    source = copy_of(
        whole, target / "vision", vision, pickled=True, text_config={"model_type": "opt"}, human_name="<human>"
    )
    (source / "preprocessor_config.json").unlink()
    (source / "tokenizer.json").unlink()
    llama = target / "llama"
    llama.mkdir()
    below = {name.removeprefix("language_model."): tensor for name, tensor in tensors.items() if name not in vision}
    torch.save(below, llama / "pytorch_model.bin")
    (llama / "config.json").write_text(json.dumps(raw["text_config"]))
    shutil.copy(whole / "tokenizer.json", llama)
    return source, llama


def test_release_a_takes_its_llama_from_another_folder(whole: Path, tmp_path: Path) -> None:
    source, llama = release_a(whole, tmp_path / "a")
    said: list[str] = []
    config = convert(source, tmp_path / "checkpoint", llama=llama, progress=said.append)
    assert answer(tmp_path / "checkpoint") == whole_answer(whole)
    assert "release A" in said[0]
    assert not config.qformer_reads_instruction
    assert VisionEncoder.load(tmp_path / "checkpoint").preprocessing.mean[0] == 0.48145466


@pytest.mark.parametrize("grown", [True, False])
def test_delta_weights_are_added_to_their_base(whole: Path, tmp_path: Path, grown: bool) -> None:
    """Ziya publishes embeddings and head whole, for the vocabulary grew; in an equal vocabulary all are differences."""
    source, llama = release_a(whole, tmp_path / "a")
    target = torch.load(llama / "pytorch_model.bin", weights_only=True)
    rows = len(target["lm_head.weight"])
    random_state = torch.Generator().manual_seed(1)
    base = {name: tensor + torch.randn(tensor.shape, generator=random_state) for name, tensor in target.items()}
    base["model.norm.weight"] = target["model.norm.weight"] * 0.999
    delta = {name: tensor - base[name] for name, tensor in target.items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if grown:
            base[name], delta[name] = base[name][: rows - 100], target[name]
    base_folder = Path(shutil.copytree(llama, tmp_path / "base"))
    torch.save(base, base_folder / "pytorch_model.bin")
    torch.save(delta, llama / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match=r"seems to hold delta weights .* --base"):
        convert(source, tmp_path / "checkpoint", llama=llama)
    convert(source, tmp_path / "checkpoint", llama=llama, base=base_folder)
    tensors = load_llama(tmp_path / "checkpoint").tensors
    for name, tensor in target.items():
        assert torch.allclose(tensors[name], tensor, atol=1e-6), name


def test_a_base_of_another_shape_is_refused(whole: Path, tmp_path: Path) -> None:
    source, llama = release_a(whole, tmp_path / "a")
    base = Path(shutil.copytree(llama, tmp_path / "base"))
    tensors = torch.load(base / "pytorch_model.bin", weights_only=True)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 64)
    torch.save(tensors, base / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"up_proj\.weight has shape \[3, 64\], which does not go with"):
        convert(source, tmp_path / "checkpoint", llama=llama, base=base)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    torch.save(tensors, base / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"up_proj\.weight of the delta weights is not in the base"):
        convert(source, tmp_path / "checkpoint", llama=llama, base=base)


def release_b(instruct: Path, target: Path) -> Path:
    """InstructBLIP's layout under the name and config of BLIP-2, with the buffer that old versions saved."""
    export(instruct, target / "exported")
    tensors = state(target / "exported")
    tensors["qformer.embeddings.position_ids"] = torch.arange(160).expand(1, -1)
    raw = json.loads((target / "exported" / "config.json").read_text())
    qformer = {name: value for name, value in raw["qformer_config"].items() if name not in ("vocab_size", "model_type")}
    source = copy_of(
        target / "exported", target / "b", tensors, model_type="blip-2", qformer_config=qformer, image_token_index=...
    )
    shutil.copy(instruct / "llama" / "tokenizer.json", source)
    shutil.copytree(target / "exported" / "qformer_tokenizer", source / "qformer_tokenizer")
    return source


def test_release_b_is_known_by_its_layout(instruct: Path, tmp_path: Path) -> None:
    source = release_b(instruct, tmp_path)
    said: list[str] = []
    config = convert(source, tmp_path / "checkpoint", progress=said.append)
    assert config.qformer_reads_instruction
    assert "release B" in said[0]
    assert answer(tmp_path / "checkpoint") == answer(instruct)
    ids = QFormer.load(tmp_path / "checkpoint").tokenize("这是什么")
    assert ids == QFormer.load(instruct).tokenize("这是什么")


def test_release_b_needs_the_qformers_tokenizer(instruct: Path, tmp_path: Path) -> None:
    source = release_b(instruct, tmp_path)
    shutil.rmtree(source / "qformer_tokenizer")
    with pytest.raises(CheckpointError, match=r"needs its BERT tokenizer: put tokenizer\.json or vocab\.txt into"):
        convert(source, tmp_path / "checkpoint")
    vocab = tiny.bert_tokenizer().get_vocab()
    (source / "qformer_tokenizer").mkdir()
    (source / "qformer_tokenizer" / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.__getitem__)))
    convert(source, tmp_path / "checkpoint")
    tokens = QFormer.load(tmp_path / "checkpoint").tokenize("what is 这?")
    assert tokens == tiny.bert_tokenizer().encode("what is 这?").ids


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_llama_alone_is_refused(whole: Path, tmp_path: Path) -> None:
    _, llama = release_a(whole, tmp_path / "a")
    with pytest.raises(CheckpointError, match="is a language model alone: give it with --llama"):
        convert(llama, tmp_path / "checkpoint")


def test_an_unknown_layout_is_described(whole: Path, tmp_path: Path) -> None:
    tensors = {
        "vision_tower.blocks.0.weight": torch.zeros(1),
        "vision_tower.norm": torch.zeros(1),
        "head": torch.zeros(1),
    }
    source = copy_of(whole, tmp_path / "other", tensors)
    with pytest.raises(CheckpointError, match=r"found head \(1\), vision_tower \(2\); missing vision_model, qformer"):
        convert(source, tmp_path / "checkpoint")


@pytest.mark.parametrize(
    "missing", ["vision_model.post_layernorm.weight", "language_model.lm_head.weight", "qformer.layernorm.bias"]
)
def test_a_missing_tensor_is_named_and_nothing_is_written(whole: Path, tmp_path: Path, missing: str) -> None:
    tensors = state(whole)
    del tensors[missing]
    source = copy_of(whole, tmp_path / "incomplete", tensors, pickled=True)
    with pytest.raises(CheckpointError, match=f"tensor {re.sub('^(vision|language)_model.', '', missing)} missing"):
        convert(source, tmp_path / "checkpoint")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["incomplete"]


def test_llama_arguments_that_do_not_go_together_are_refused(whole: Path, plain: Path, tmp_path: Path) -> None:
    source, llama = release_a(whole, tmp_path / "a")
    with pytest.raises(CheckpointError, match="has no language model: give its folder with --llama"):
        convert(source, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="has its own language model: leave --llama out"):
        convert(whole, tmp_path / "checkpoint", llama=llama)
    with pytest.raises(CheckpointError, match="--base goes with --llama"):
        convert(whole, tmp_path / "checkpoint", base=llama)
    with pytest.raises(CheckpointError, match="is a checkpoint already"):
        convert(plain, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="is there already"):
        convert(whole, llama)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "opt"}, "the language model is 'opt'; only 'llama'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope scaling 'linear'"),
        ({"attention_bias": True}, "attention_bias True is not supported"),
    ],
)
def test_a_language_model_that_is_not_ours_is_refused(
    whole: Path, tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    raw = json.loads((whole / "config.json").read_text())
    source = Path(shutil.copytree(whole, tmp_path / "whole"))
    edit(source / "config.json", text_config=raw["text_config"] | changes)
    with pytest.raises(CheckpointError, match=complaint):
        convert(source, tmp_path / "checkpoint")


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused(whole: Path, tmp_path: Path, zipped: bool) -> None:
    source = copy_of(whole, tmp_path / "evil", {}, pickled=True)
    evil = {"a": Evil(tmp_path / "owned")}
    if zipped:
        torch.save(evil, source / "pytorch_model.bin")
    else:
        (source / "pytorch_model.bin").write_bytes(pickle.dumps(evil, protocol=2))
    with pytest.raises(CheckpointError, match="cannot be read as plain tensors"):
        convert(source, tmp_path / "checkpoint")
    assert not (tmp_path / "owned").exists()


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        convert(tmp_path, tmp_path / "checkpoint")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no weights: neither"):
        convert(tmp_path, tmp_path / "checkpoint")


# ── back to Hugging Face ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("options", [{}, {"retrieval": True}, {"reads_instruction": True}, {"tied": True}])
def test_transformers_says_the_same_from_the_export(options: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = tiny.build_checkpoint(tmp_path / "checkpoint", **options)
    export(checkpoint, tmp_path / "exported", shard_bytes=100_000)
    instruct = options.get("reads_instruction", False)
    kind = InstructBlipForConditionalGeneration if instruct else Blip2ForConditionalGeneration
    model, report = kind.from_pretrained(tmp_path / "exported", output_loading_info=True)
    assert not any(report.values())
    processor = AutoProcessor.from_pretrained(tmp_path / "exported")
    inputs = processor(images=Image.fromarray(picture()), text=TEXT, return_tensors="pt")
    output = model.eval().generate(**inputs, max_new_tokens=NEW, do_sample=False)[0][inputs["input_ids"].shape[1] :]
    assert output.tolist() == answer(checkpoint)
    # The picture matters, or else this test would show nothing.
    assert answer(checkpoint) != reference_generate(checkpoint, [picture(4)], ["", TEXT], NEW, instruction=TEXT)


@pytest.mark.parametrize("options", [{}, {"reads_instruction": True}, {"tied": True}])
def test_there_and_back_is_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = tiny.build_checkpoint(tmp_path / "ours", **options)
    export(checkpoint, tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "again")
    for part in ("vision", "qformer", "llama"):
        for path in (checkpoint / part).glob("*.safetensors"):
            assert path.read_bytes() == (tmp_path / "again" / part / path.name).read_bytes(), path
    assert read_tokenizer(tmp_path / "again" / "llama").get_vocab() == tiny.llama_tokenizer().get_vocab()
    assert fingerprint(checkpoint / "vision") == fingerprint(tmp_path / "again" / "vision")


def test_an_export_does_not_overwrite(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is there already"):
        export(plain, tmp_path)


# ── LLaMA's SentencePiece tokenizer ──────────────────────────────────────────────────────────────────────────

TEXTS = (
    "<human>:hello 世界 🐱 \n<bot>:",
    " the cat  is",
    "这是一只猫。Zebra 12345",
    "<human>:x\n<bot>:hello</s><human>:what is this\n<bot>:",
    "<human> a <bot> b",
    "",
)


@pytest.fixture(scope="module")
def slow(folder: Path) -> Path:
    """A tokenizer folder as Ziya-LLaMA's: a SentencePiece model and two added tokens."""
    words = ["hello", "world", "what", "is", "this", "the", "cat", "dog", "猫", "狗", "这是什么", "图中", "一只"]
    chooser = random.Random(0)
    target = folder / "slow"
    target.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(chooser.choices(words, k=8)) for _ in range(500)),
        model_prefix=str(target / "tokenizer"),
        vocab_size=336,
        model_type="bpe",
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    (target / "tokenizer.vocab").unlink()
    (target / "added_tokens.json").write_text(json.dumps({"<bot>": 337, "<human>": 336}))
    (target / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    return target


def slow_ids(processor: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """As the slow LlamaTokenizer of 2023 did it: split on added tokens, strip beside them, encode each piece."""
    known = {"<human>": 336, "<bot>": 337, "</s>": 2}
    pieces = re.split("(<human>|<bot>|</s>)", text)
    ids: list[int] = []
    for number, piece in enumerate(pieces):
        if piece in known:
            ids.append(known[piece])
            continue
        if number + 1 < len(pieces) and pieces[number + 1] != "</s>":
            piece = piece.rstrip()  # noqa: PLW2901
        if number and pieces[number - 1] != "</s>":
            piece = piece.lstrip()  # noqa: PLW2901
        ids += processor.encode(piece)
    return ids


def test_ids_are_those_that_the_model_was_trained_with(slow: Path) -> None:
    tokenizer = read_tokenizer(slow)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(slow / "tokenizer.model"))
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == slow_ids(processor, text)
    assert tokenizer.decode(tokenizer.encode("这是 🐱 naïve").ids) == "这是 🐱 naïve"
    assert (tokenizer.token_to_id("<human>"), tokenizer.token_to_id("<bot>")) == (336, 337)


def test_newer_tokenizer_configs_say_themselves_what_is_stripped(slow: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(slow, tmp_path / "newer"))
    token = {"content": "<human>", "lstrip": False, "rstrip": False, "special": False, "single_word": False}
    edit(folder / "tokenizer_config.json", added_tokens_decoder={"336": token, "337": token | {"content": "<bot>"}})
    assert 13 in read_tokenizer(folder).encode("hello\n<bot>").ids  # byte 0x0A


def test_other_sentencepiece_models_are_refused(slow: Path, tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world this is a test of a model"] * 20),
        model_prefix=str(tmp_path / "unigram"),
        vocab_size=290,
        model_type="unigram",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(CheckpointError, match="does not tokenize as LLaMA's does"):
        from_sentencepiece(tmp_path / "unigram.model")
    (tmp_path / "broken.model").write_bytes(b"hello")
    with pytest.raises(CheckpointError, match="is not a SentencePiece model"):
        from_sentencepiece(tmp_path / "broken.model")
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        read_tokenizer(tmp_path)


def test_a_slow_tokenizer_is_converted_with_its_model(slow: Path, whole: Path, tmp_path: Path) -> None:
    source, llama = release_a(whole, tmp_path / "a")
    (llama / "tokenizer.json").unlink()
    shutil.copytree(slow, llama, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match="the tokenizer has id 337, but the model has 308 rows"):
        convert(source, tmp_path / "checkpoint", llama=llama)
    model = LlamaForCausalLM(tiny.llama_config(384))
    model.save_pretrained(tmp_path / "bigger")
    shutil.copytree(slow, tmp_path / "bigger", dirs_exist_ok=True)
    convert(source, tmp_path / "checkpoint", llama=tmp_path / "bigger")
    assert read_config(tmp_path / "checkpoint").llm_width == 64
    assert (tmp_path / "checkpoint" / "llama" / "tokenizer.model").is_file()
    assert len(generate_from_tokens(tmp_path / "checkpoint", [], [TEXT], 4, ignore_eos=True)) == 4
    # The rows beyond the tokenizer are free: the placeholder of an export takes one.
    export(tmp_path / "checkpoint", tmp_path / "exported")
    raw = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert (raw["image_token_index"], raw["text_config"]["vocab_size"]) == (338, 384)
