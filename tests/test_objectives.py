"""All losses of a recipe on a small real model: against transformers, token by token, and across processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.models.blip_2.configuration_blip_2 import Blip2Config
from transformers.models.blip_2.modeling_blip_2 import Blip2ForConditionalGeneration

from tests import tiny
from tests.micro_batches import batch, captions, objectives, recipe, rows
from training.data.batch import Batch, Captions, Pictures
from training.errors import BadConfig
from training.losses import captioning
from training.objectives import Losses, Objectives
from training.peers import Peers
from training.recipe import Images, Text
from ziya.model.qformer import QFormerModule

ALONE = Peers()
EVERY = ("itc", "itm", "itg", "lm", "classify")


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with every head, whose Q-Former reads the instruction."""
    return tiny.build_checkpoint(tmp_path_factory.mktemp("retrieval"), retrieval=True, reads_instruction=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_checkpoint(tmp_path_factory.mktemp("plain"))


def qformer_of(made: Objectives) -> QFormerModule:
    assert made.model.qformer is not None
    return made.model.qformer


def features_of(made: Objectives, of: Batch) -> Tensor:
    assert of.pictures is not None
    assert of.pictures.pixels_I3SS is not None
    return made.model.features(of.pictures.pixels_I3SS)


def numbers(losses: Losses) -> dict[str, float]:
    return {name: value.item() for name, value in losses.sums.items()}


def every(folder: Path) -> Objectives:
    return objectives(folder, recipe(*EVERY, labels={"concept": 1.0}), classes={"concept": 3})


def test_one_pass_gives_the_image_side_of_itc_and_itg(retrieval: Path) -> None:
    made, of = objectives(retrieval, recipe("itc", "itg")), batch()
    assert of.captions is not None
    features = features_of(made, of)
    shared, _ = captioning.decode(qformer_of(made), features, of.captions, None)
    assert torch.allclose(shared, qformer_of(made).query(features), atol=1e-12)
    both = numbers(made(of, ALONE))
    for name in ("itc", "itg"):
        single = objectives(retrieval, recipe(name))
        assert numbers(single(of, ALONE))[name] == pytest.approx(both[name], rel=1e-12)


@pytest.mark.parametrize("start", [None, 7])
def test_itg_equals_writing_one_token_after_another(retrieval: Path, start: int | None) -> None:
    """Each next token from a full, unmasked pass over the text before it: nothing later can have been seen."""
    made, of = objectives(retrieval, recipe("itg")), batch(2)
    made.model.start_token = start
    assert of.captions is not None
    features, expected = features_of(made, of), 0.0
    words = qformer_of(made).embeddings.word_embeddings.weight
    for sample in range(2):
        ids = of.captions.ids_BT[sample, : int(of.captions.mask_BT[sample].sum())]
        read = ids.clone()
        read[0] = ids[0] if start is None else start
        for at in range(1, len(ids)):
            before = Captions(read[None, :at], torch.ones(1, at, dtype=torch.long))
            _, text = captioning.decode(qformer_of(made), features[sample : sample + 1], before, None)
            logits = made.itg_head(text[:, -1], words)
            expected += nn.functional.cross_entropy(logits, ids[at : at + 1], label_smoothing=0.1).item()
    assert numbers(made(of, ALONE))["itg"] == pytest.approx(expected, rel=1e-10)


def test_itm_with_its_negatives_is_the_models_own_match(retrieval: Path) -> None:
    """Two samples: the wrong one is the other one, so that the six pairs can be written down."""
    made, of = objectives(retrieval, recipe("itm")), batch(2)
    assert of.captions is not None
    features, expected = features_of(made, of), 0.0
    for image in range(2):
        for text in range(2):
            shown = [x[text : text + 1] for x in (of.captions.ids_BT, of.captions.mask_BT)]
            logits = qformer_of(made).match(features[image : image + 1], *shown)
            lost = nn.functional.cross_entropy(logits, torch.tensor([int(image == text)])).item()
            # Each wrong pair is met twice: as one sample's wrong text and as the other's wrong image.
            expected += lost if image == text else 2 * lost
    assert numbers(made(of, ALONE))["itm"] == pytest.approx(expected, rel=1e-10)
    assert made.counts(of) == {"itm": 6}


def test_itm_of_one_group_has_only_its_own_pairs(retrieval: Path) -> None:
    made, of = objectives(retrieval, recipe("itm")), batch(2, groups=[5, 5])
    assert of.captions is not None
    logits = qformer_of(made).match(features_of(made, of), of.captions.ids_BT, of.captions.mask_BT)
    expected = nn.functional.cross_entropy(logits, torch.ones(2, dtype=torch.long), reduction="sum").item()
    assert numbers(made(of, ALONE))["itm"] == pytest.approx(expected, rel=1e-10)
    assert made.counts(of) == {"itm": 6}


def test_itc_is_the_models_own_embeddings_compared(retrieval: Path) -> None:
    made, of = objectives(retrieval, recipe("itc")), batch(4, groups=[0, 1, 0, 2])
    assert of.captions is not None
    images = qformer_of(made).embed_image(features_of(made, of))
    texts = qformer_of(made).embed_text(of.captions.ids_BT, of.captions.mask_BT)
    scores = torch.einsum("bqj,gj->bgq", images, texts).amax(-1) / made.temperature
    wanted = torch.tensor([[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]], dtype=torch.float64)
    both = [nn.functional.cross_entropy(s, wanted, reduction="sum", label_smoothing=0.1) for s in (scores, scores.T)]
    assert numbers(made(of, ALONE))["itc"] == pytest.approx((both[0] + both[1]).item() / 2, rel=1e-10)


def blip2(made: Objectives, image_token: int) -> Blip2ForConditionalGeneration:
    """Transformers' own BLIP-2 of the same weights."""
    model = made.model
    assert model.vision is not None
    assert model.qformer is not None
    assert model.llama is not None
    assert model.language_projection is not None
    config = Blip2Config(
        vision_config=model.vision.config.to_dict(),
        qformer_config=model.qformer.config.to_dict(),
        text_config=model.llama.config.to_dict(),
        num_query_tokens=tiny.QUERIES,
        image_token_index=image_token,
    )
    whole = Blip2ForConditionalGeneration(config).double().eval()
    whole.vision_model.load_state_dict(model.vision.state_dict())
    whole.qformer.load_state_dict(model.qformer.qformer.state_dict())
    whole.query_tokens.data.copy_(model.qformer.query_tokens)
    whole.language_projection.load_state_dict(model.language_projection.state_dict())
    whole.language_model.load_state_dict(model.llama.state_dict())
    return whole


@pytest.mark.parametrize("layout", ["pad", "pack"])
def test_lm_is_the_loss_of_transformers_blip2(plain: Path, layout: str) -> None:
    """The same inputs: placeholders for visual tokens, labels on what is learnt, right padding."""
    image_token = 2
    how = recipe("lm", text=Text(layout=layout))  # type: ignore[arg-type]
    made, of = objectives(plain, how), batch(3)
    assert of.rows is not None
    assert of.pictures is not None
    laid, whole = of.rows, blip2(made, image_token)
    labels = laid.ids_RT.masked_fill(~laid.learnt_RT, -100)
    ids = laid.ids_RT.masked_fill(laid.visual_RT >= 0, image_token)
    theirs = whole(
        pixel_values=of.pictures.pixels_I3SS,
        input_ids=ids,
        attention_mask=(laid.segment_RT > 0).long(),
        labels=labels,
    )
    found = made(of, ALONE)
    count = made.counts(of)["lm"]
    assert count == 9
    assert found.sums["lm"].item() / count == pytest.approx(theirs.loss.item(), rel=1e-6)
    assert float(found.by_source[0].sum()) == pytest.approx(found.sums["lm"].item(), rel=1e-12)
    assert found.by_source[1].tolist() == [6, 3]
    found.sums["lm"].backward()
    theirs.loss.backward()
    assert qformer_of(made).query_tokens.grad is not None
    # Transformers' loss takes float32 logits, whatever the model is.
    assert torch.allclose(qformer_of(made).query_tokens.grad / count, whole.query_tokens.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("instructions", [None, Captions(torch.zeros(0, 0).long(), torch.zeros(0, 0).long())])
def test_lm_without_pictures_is_the_llamas_own_loss(retrieval: Path, instructions: Captions | None) -> None:
    """Text alone; and what would have looked at pictures learns nothing, but has a gradient."""
    how = recipe("lm", learn={"qformer": 1.0, "projection": 1.0})
    made, laid = objectives(retrieval, how, dtype=torch.float32), rows([5, 4, 6], learnt=2, queries=0)
    of = replace(batch(3), pictures=None, captions=None, rows=laid, instructions=instructions)
    llama = made.model.llama
    assert llama is not None
    labels = laid.ids_RT.masked_fill(~laid.learnt_RT, -100)
    theirs = llama(input_ids=laid.ids_RT, attention_mask=(laid.segment_RT > 0).long(), labels=labels).loss
    found = made(of, ALONE)
    assert found.sums["lm"].item() / made.counts(of)["lm"] == pytest.approx(theirs.item(), rel=1e-6)
    found.sums["lm"].backward()
    learnt = [weight.grad for weight in made.parameters() if weight.requires_grad]
    assert len(learnt) > 10
    assert all(gradient is not None and not gradient.any() for gradient in learnt)


def packed(of: Batch) -> Batch:
    """The same samples in one row."""
    assert of.rows is not None
    real = of.rows.segment_RT > 0
    parts = {name: x[real][None] for name, x in vars(of.rows).items() if x is not None}
    parts["segment_RT"] = parts["sample_RT"] + 1
    return replace(of, rows=type(of.rows)(**parts))


def test_packed_rows_give_the_loss_of_padded_ones(plain: Path) -> None:
    of = batch(3)
    one = objectives(plain, recipe("lm"))(of, ALONE)
    other = objectives(plain, recipe("lm", text=Text(layout="pack")))(packed(of), ALONE)
    assert other.sums["lm"].item() == pytest.approx(one.sums["lm"].item(), rel=1e-10)
    assert torch.allclose(other.by_source, one.by_source)


def test_instructions_change_what_a_reading_qformer_shows(retrieval: Path, plain: Path) -> None:
    of, other = batch(3), replace(batch(3), instructions=captions([4, 4, 4], seed=9))
    for folder, differs in ((retrieval, True), (plain, False)):
        made = objectives(folder, recipe("lm"))
        assert (numbers(made(of, ALONE)) != numbers(made(other, ALONE))) is differs


def test_an_invalid_sample_changes_nothing(retrieval: Path) -> None:
    """Whatever is in its place, losses, counts and gradients are those of another filling."""
    made, whole = every(retrieval), batch(4)
    whole = replace(whole, valid_B=torch.tensor([True, True, False, True]))
    assert whole.pictures is not None
    assert whole.pictures.pixels_I3SS is not None
    assert whole.labels is not None
    pixels = whole.pictures.pixels_I3SS.clone()
    pixels[2] = 3.0
    labels = {"concept": torch.where(torch.arange(4) == 2, -1, whole.labels["concept"])}
    texts = captions([5, 6, 7, 5])
    texts.ids_BT[2] = 9
    other = replace(
        whole,
        pictures=Pictures(pixels_I3SS=pixels),
        captions=texts,
        labels=labels,
        group_B=torch.tensor([0, 1, 0, 3]),
    )
    found = []
    for of in (whole, other):
        made.zero_grad()
        losses = made(of, ALONE)
        torch.stack(list(losses.sums.values())).sum().backward()
        gradients = torch.cat([w.grad.flatten() for w in made.parameters() if w.grad is not None])
        found.append((numbers(losses), made.counts(of), gradients))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-10)
    assert found[0][1] == found[1][1] == {"itc": 3, "itm": 9, "itg": 4 + 5 + 4, "lm": 9, "classify": 3}
    assert torch.allclose(found[0][2], found[1][2], atol=1e-9)


def test_an_invalid_sample_is_as_good_as_not_there(retrieval: Path) -> None:
    made, whole = objectives(retrieval, recipe("itc", "itg", "itm")), batch(3)
    shorter = replace(
        batch(2), captions=captions([5, 6, 7]), pictures=whole.pictures, valid_B=torch.tensor([True, True])
    )
    assert whole.pictures is not None
    assert whole.pictures.pixels_I3SS is not None
    assert whole.captions is not None
    cut = Captions(whole.captions.ids_BT[:2], whole.captions.mask_BT[:2])
    shorter = replace(shorter, captions=cut, pictures=Pictures(pixels_I3SS=whole.pictures.pixels_I3SS[:2]))
    marked = replace(whole, valid_B=torch.tensor([True, True, False]))
    assert numbers(made(marked, ALONE)) == pytest.approx(numbers(made(shorter, ALONE)), rel=1e-10)


def test_a_batch_of_nothing_has_losses_of_zero_and_every_gradient(retrieval: Path) -> None:
    made, of = every(retrieval), batch(2)
    empty = replace(
        of,
        valid_B=torch.zeros(2, dtype=torch.bool),
        captions=None,
        pictures=None,
        instructions=None,
        rows=replace(rows([3], 1), **{n: v[:0] for n, v in vars(rows([3], 1)).items() if v is not None}),
    )
    assert made.counts(empty) == dict.fromkeys(EVERY, 0.0)
    # What is blank is float32, as in a run.
    losses = made.float()(empty, ALONE)
    assert numbers(losses) == dict.fromkeys(EVERY, 0.0)
    torch.stack(list(losses.sums.values())).sum().backward()
    learnt = [(name, weight.grad) for name, weight in made.named_parameters() if weight.requires_grad]
    assert [name for name, gradient in learnt if gradient is None or float(gradient.abs().max()) != 0] == []


def test_pictures_may_come_as_pixels_features_or_tokens(plain: Path) -> None:
    of, found = batch(3), []
    made = objectives(plain, recipe("lm"))
    with torch.no_grad():
        features = features_of(made, of)
        tokens = made.model.tokens(features)
    for shown in (of.pictures, Pictures(features_IND=features), Pictures(tokens_IQD=tokens)):
        found.append(numbers(made(replace(of, pictures=shown), ALONE))["lm"])
    assert found == [pytest.approx(found[0], rel=1e-12)] * 3


def test_classify_reads_the_mean_of_the_vits_tokens(plain: Path) -> None:
    how = recipe("classify", labels={"concept": 0.5}, learn={"vision": 1.0})
    made, of = objectives(plain, how, classes={"concept": 3}), batch(4)
    assert of.labels is not None
    logits = made.label_heads["concept"](features_of(made, of).mean(1))
    expected = nn.functional.cross_entropy(logits, of.labels["concept"], reduction="sum", label_smoothing=0.1)
    found = made(of, ALONE).sums["classify"]
    assert found.item() == pytest.approx(0.5 * expected.item(), rel=1e-10)
    found.backward()
    assert made.model.vision is not None
    assert all(weight.grad is not None for weight in made.model.vision.parameters())


@pytest.mark.parametrize(
    ("losses", "changes", "said"),
    [
        ((), {}, "not nothing"),
        (("lm", "clip"), {}, "clip"),
        (("itc",), {}, "retrieval heads"),
        (("itg",), {}, "text branch"),
        (("classify",), {"labels": {"shape": 1.0}}, "no classes.*shape"),
        (("classify", "lm"), {"images": Images(cache="tokens")}, "lm alone"),
    ],
)
def test_what_cannot_be_is_refused(plain: Path, losses: tuple[str, ...], changes: dict[str, object], said: str) -> None:
    with pytest.raises(BadConfig, match=said):
        objectives(plain, recipe(*losses, **changes))
