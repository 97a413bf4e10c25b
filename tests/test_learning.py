"""What learns, what is frozen and still, and that the structural rule is what the gradients say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import tiny
from tests.micro_batches import batch, objectives, recipe
from training.errors import BadConfig
from training.learning import Group, learnable, unreached
from training.lora import attach
from training.model import VisualLanguageModel, parts_of
from training.objectives import Objectives
from training.peers import Peers
from training.recipe import Compute, Images, Lora, Recipe
from training.stages import STAGES

LEARN_ALL = {"vision": 1.0, "qformer": 1.0, "projection": 1.0, "llama": 1.0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_checkpoint(tmp_path_factory.mktemp("checkpoint"), retrieval=True)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_checkpoint(tmp_path_factory.mktemp("reading"), retrieval=True, reads_instruction=True)


def made_for(folder: Path, how: Recipe) -> tuple[Objectives, list[Group]]:
    """As a run does it: only the parts that are needed, adapters, heads, then what learns."""
    model = VisualLanguageModel.load(folder, parts=parts_of(how))
    if how.lora is not None and model.llama is not None:
        attach(model.llama, how.lora, how.seed)
    made = Objectives(model, how, {"concept": 3})
    return made, learnable(made, how)


@pytest.mark.parametrize(
    "losses",
    [("itc",), ("itm",), ("itg",), ("lm",), ("classify",), ("itc", "itm"), ("itc", "itm", "itg"), ("lm", "itg")],
)
@pytest.mark.parametrize("reads", [False, True])
def test_what_is_not_reached_is_what_has_no_gradient(
    checkpoint: Path, reading: Path, losses: tuple[str, ...], reads: bool
) -> None:
    how = recipe(*losses, labels={"concept": 1.0} if "classify" in losses else {}, learn={"vision": 1.0})
    made = objectives(reading if reads else checkpoint, how, classes={"concept": 3})
    for weight in made.parameters():
        weight.requires_grad_()
    found = made(batch(2), Peers())
    torch.stack(list(found.sums.values())).sum().backward()
    none = [name for name, weight in made.named_parameters() if weight.grad is None]
    assert sorted(unreached(made, how)) == sorted(none)


@pytest.mark.parametrize("stage", STAGES)
def test_every_weight_that_learns_in_a_named_stage_has_a_gradient(checkpoint: Path, stage: str) -> None:
    how = replace(STAGES[stage](), compute=Compute(precision="float32"), data=recipe("lm").data)
    made, groups = made_for(checkpoint, how)
    torch.stack(list(made(batch(2, dtype=torch.float32), Peers()).sums.values())).sum().backward()
    learning = {name for name, weight in made.named_parameters() if weight.requires_grad}
    assert {name for group in groups for name in group.names} == learning
    assert sum(len(group.names) for group in groups) == len(learning)
    assert {name for name, weight in made.named_parameters() if weight.grad is not None} == learning


def test_the_longest_name_decides_and_small_tensors_do_not_decay(checkpoint: Path) -> None:
    learn = {"qformer": 1.0, "qformer.qformer.encoder.layer.0": 0.5, "qformer.query_tokens": 0.0, "projection": 2.0}
    how = recipe("lm", "itg", learn={**learn, "vision.post_layernorm": 1.0})
    made, groups = made_for(checkpoint, how)
    weights = dict(made.named_parameters())
    shares = {name: group.share for group in groups for name in group.names}
    assert "model.qformer.query_tokens" not in shares
    assert not weights["model.qformer.query_tokens"].requires_grad
    assert shares["model.qformer.qformer.encoder.layer.0.attention.attention.query.weight"] == 0.5
    assert shares["model.qformer.qformer.encoder.layer.1.attention.attention.query.weight"] == 1.0
    assert shares["model.language_projection.weight"] == 2.0
    assert shares["itg_head.dense.weight"] == 1.0
    vision = {name for name in shares if name.startswith("model.vision.")}
    assert vision == {"model.vision.post_layernorm.weight", "model.vision.post_layernorm.bias"}
    assert all(group.decay == (weights[name].ndim >= 2) for group in groups for name in group.names)


def test_lora_learns_at_the_llamas_share_and_holds_the_rest_of_it(checkpoint: Path) -> None:
    _, groups = made_for(checkpoint, recipe("lm", learn={"llama": 10.0}, lora=Lora(rank=2)))
    names = [name for group in groups for name in group.names]
    assert len(names) == 2 * 7 * 2
    assert all(".lora_" in name for name in names)
    assert {group.share for group in groups} == {10.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learn": {}}, "nothing of the model learns"),
        ({"learn": {"qformer": 0.0}}, "nothing of the model learns"),
        ({"learn": {"qformer": -1.0}}, "0 or more"),
        ({"learn": {"qformers": 1.0}}, "'qformers'.*no such part"),
        ({"learn": {"vision.post": 1.0}}, "'vision.post'.*no such part"),
        ({"learn": {"qformer.itm_head": 1.0}}, "qformer.itm_head.*losses lm do not reach"),
        ({"learn": {"projection": 1.0}, "lora": Lora(rank=2)}, "llama no share"),
        ({"learn": {"vision": 1.0}, "images": Images(cache="features")}, "no such part"),
        ({"learn": {"qformer": 1.0}, "images": Images(cache="tokens")}, "no such part"),
    ],
)
def test_what_cannot_learn_is_refused(checkpoint: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(BadConfig, match=said):
        made_for(checkpoint, recipe("lm", **changes))


def test_lora_without_adapters_and_cached_parts_are_refused(checkpoint: Path) -> None:
    model = VisualLanguageModel.load(checkpoint)
    how = recipe("lm", learn={"llama": 1.0}, lora=Lora(rank=2))
    with pytest.raises(BadConfig, match="no adapters were attached"):
        learnable(Objectives(model, how, {}), how)
    cached = recipe("lm", learn={"vision": 1.0}, images=Images(cache="features"))
    with pytest.raises(BadConfig, match="with cached features do not reach"):
        learnable(Objectives(model, cached, {}), cached)
    with pytest.raises(BadConfig, match="no part eyes"):
        VisualLanguageModel.load(checkpoint, parts=("eyes",))
    with pytest.raises(BadConfig, match="'llama', which was not loaded"):
        VisualLanguageModel.load(checkpoint, parts=("vision",)).hidden(batch().rows, torch.zeros(1))  # type: ignore[arg-type]


def test_what_is_frozen_stays_still_and_gives_no_graph(checkpoint: Path) -> None:
    how = recipe("lm", learn={"projection": 1.0})
    made, _ = made_for(checkpoint, how)
    made.train()
    model = made.model
    assert model.qformer is not None
    assert model.llama is not None
    assert model.language_projection is not None
    assert not any(module.training for module in (*model.qformer.modules(), *model.llama.modules()))
    assert made.training
    assert model.language_projection.training
    assert not model.tokens(torch.randn(1, 17, 32)).requires_grad
    twice = [made(batch(2, dtype=torch.float32), Peers()).sums["lm"].item() for _ in range(2)]
    assert twice[0] == twice[1]
    learns, _ = made_for(checkpoint, recipe("lm"))
    learns.train()
    assert learns.model.qformer is not None
    dropouts = [m for m in learns.model.qformer.modules() if isinstance(m, nn.Dropout)]
    # Those of the text branch alone may be still.
    assert sum(module.training for module in dropouts) >= len(dropouts) - tiny.qformer_config().num_hidden_layers


def test_bfloat16_keeps_what_learns_and_norms_in_float32(checkpoint: Path) -> None:
    how = replace(STAGES["instruct"](), data=recipe("lm").data)
    made, groups = made_for(checkpoint, how)
    learning = {name for group in groups for name in group.names}
    for name, weight in made.named_parameters():
        small = name not in learning and weight.ndim >= 2
        assert weight.dtype == (torch.bfloat16 if small else torch.float32), name


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_gives_about_the_loss_of_float32(checkpoint: Path, stage: str) -> None:
    found = []
    for precision in ("float32", "bfloat16"):
        how = replace(STAGES[stage](), compute=Compute(precision=precision), data=recipe("lm").data)  # type: ignore[arg-type]
        made, _ = made_for(checkpoint, how)
        of = batch(2, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            sums = made.eval()(of, Peers()).sums
        assert all(value.dtype == torch.float32 for value in sums.values())
        torch.stack(list(sums.values())).sum().backward()
        found.append({name: value.item() for name, value in sums.items()})
    # ITC divides by a small temperature, so that rounding counts most there.
    assert found[1] == pytest.approx(found[0], rel=0.1)
