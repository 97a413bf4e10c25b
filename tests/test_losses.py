"""Losses against their formulae worked out by hand in numpy, one number at a time."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.micro_batches import captions, rows
from training.losses import captioning, classify, contrast, language, matching
from training.losses.memory import Memory, Seen

Array = NDArray[np.float64]


def logs(scores: Array) -> Array:
    """Log-softmax by its definition."""
    found: Array = scores - math.log(sum(math.exp(one) for one in scores))
    return found


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return nn.functional.normalize(random(*shape, seed=seed), dim=-1)


def by_hand_contrast(
    images: Array, texts: Array, groups: list[int], valid: list[bool], *, temperature: float, smoothing: float
) -> float:
    """ITC over valid samples only, loop by loop: images [G, Q, J], texts [G, J]."""
    kept = [g for g in range(len(groups)) if valid[g]]
    total = 0.0
    for own in kept:
        to_text = np.array([max(float(q @ texts[g]) for q in images[own]) for g in kept]) / temperature
        to_image = np.array([max(float(q @ texts[own]) for q in images[g]) for g in kept]) / temperature
        same = [g for g in kept if groups[g] == groups[own]]
        target = [(1 - smoothing) * (g in same) / len(same) + smoothing / len(kept) for g in kept]
        for scores in (to_text, to_image):
            total -= 0.5 * sum(t * one for t, one in zip(target, logs(scores), strict=True))
    return total


@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4], [7, 1, 7, 7, 1]])
@pytest.mark.parametrize("valid", [[True] * 5, [True, False, True, True, True]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_contrast_is_the_formula(groups: list[int], valid: list[bool], smoothing: float) -> None:
    images, texts = unit(5, 3, 6), unit(5, 6, seed=1)
    group, ok = torch.tensor(groups), torch.tensor(valid)
    scores = [one / 0.07 for one in contrast.similarity(images, texts, images, texts)]
    wanted = contrast.targets(group, group, ok, smoothing, torch.float64)
    found = contrast.contrast(scores[0], scores[1], wanted, ok, ok)
    expected = by_hand_contrast(images.numpy(), texts.numpy(), groups, valid, temperature=0.07, smoothing=smoothing)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_contrast_without_groups_is_cross_entropy_with_label_smoothing_as_in_lavis() -> None:
    """LAVIS: the mean of F.cross_entropy both ways against the diagonal, with label_smoothing 0.1."""
    images, texts = unit(4, 3, 6), unit(4, 6, seed=1)
    every = torch.ones(4, dtype=torch.bool)
    to_text, to_image = (one / 0.07 for one in contrast.similarity(images, texts, images, texts))
    wanted = contrast.targets(torch.arange(4), torch.arange(4), every, 0.1, torch.float64)
    found = contrast.contrast(to_text, to_image, wanted, every, every) / 4
    cross = [nn.functional.cross_entropy(one, torch.arange(4), label_smoothing=0.1) for one in (to_text, to_image)]
    assert float(found) == pytest.approx(float(sum(cross)) / 2, rel=1e-12)


def test_contrast_of_nothing_valid_is_zero_with_zero_gradient() -> None:
    images, none = unit(3, 2, 4).requires_grad_(), torch.zeros(3, dtype=torch.bool)
    scores = contrast.similarity(images, unit(3, 4), images, unit(3, 4))
    group = torch.arange(3)
    found = contrast.contrast(*scores, contrast.targets(group, group, none, 0.1, torch.float64), none, none)
    found.backward()
    assert found.item() == 0
    assert images.grad is not None
    assert float(images.grad.abs().max()) == 0


@pytest.mark.parametrize(("value", "bounded"), [(0.07, 0.07), (0.9, 0.5), (-1.0, 0.001)])
def test_temperature_is_bounded_and_never_stuck(value: float, bounded: float) -> None:
    parameter = torch.tensor([value], requires_grad=True)
    found = contrast.bounded(parameter)
    found.sum().backward()
    assert found.item() == pytest.approx(bounded, abs=1e-6)
    assert parameter.grad is not None
    assert float(parameter.grad) == 1


def test_matching_is_the_formula_and_leaves_out_what_is_not_there() -> None:
    logits = random(3, 3, 2)
    valid, there = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    expected = 0.0
    for kind, sample in [(0, 0), (1, 0), (2, 0), (0, 2)]:
        expected -= float(logs(logits[kind, sample].numpy())[1 if kind == 0 else 0])
    assert float(matching.matching(logits, valid, there)) == pytest.approx(expected, rel=1e-12)


def test_negatives_are_never_of_the_same_group_and_are_drawn_by_similarity() -> None:
    """Gumbel-max is softmax sampling: over 20 000 draws frequencies are the softmax of the allowed ones."""
    count, group = 20_000, torch.tensor([0, 1, 0, 2, 3])
    scores = random(1, 5).expand(count, 5)
    possible = (group != 0).expand(count, 5)
    noise = matching.noise(11, range(count), 5)
    found = matching.draw_negatives(scores, -scores, possible, noise)
    assert bool(found.there_B.all())
    for drawn, sign in ((found.text_B, 1), (found.image_B, -1)):
        expected = (sign * scores[0]).masked_fill(group == 0, float("-inf")).softmax(0)
        shares = torch.bincount(drawn, minlength=5) / count
        assert float((shares - expected).abs().max()) < 0.015


def test_noise_belongs_to_seed_and_position_alone() -> None:
    every = matching.noise(3, [10, 11, 12], 4)
    assert torch.equal(every[:, 1:2], matching.noise(3, [11], 4))
    assert not torch.equal(every, matching.noise(4, [10, 11, 12], 4))
    assert not torch.equal(every[:, 0], every[:, 1])


def test_a_sample_with_nothing_else_has_no_negatives() -> None:
    group = torch.tensor([1, 1, 1])
    possible = group[:, None] != group
    scores = random(3, 3)
    assert not bool(matching.draw_negatives(scores, scores, possible, matching.noise(0, range(3), 3)).there_B.any())


def test_captioning_is_berts_head_and_smoothed_cross_entropy_of_the_next_token() -> None:
    torch.manual_seed(0)
    head = captioning.CaptionHead(8, 40, 1e-12).double()
    nn.init.normal_(head.bias)
    words, text, shown = random(40, 8), random(2, 6, 8, seed=1), captions([6, 4])
    valid, expected = torch.tensor([True, True]), 0.0
    weight, bias = head.dense.weight.detach().numpy(), head.dense.bias.detach().numpy()
    for sample, length in enumerate([6, 4]):
        for at in range(length - 1):
            hidden = weight @ text[sample, at].numpy() + bias
            hidden = np.array([0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in hidden])
            hidden = (hidden - hidden.mean()) / math.sqrt(hidden.var() + 1e-12)
            found = logs(words.numpy() @ hidden + head.bias.detach().numpy())
            expected -= 0.9 * found[int(shown.ids_BT[sample, at + 1])] + 0.1 * found.mean()
    loss = captioning.captioning(head, words, text, shown, valid, smoothing=0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    assert int(captioning.predicted(shown, valid).sum()) == 5 + 3


def test_language_counts_learnt_tokens_of_valid_samples_by_source() -> None:
    laid, head, hidden = rows([5, 4, 6], learnt=2), nn.Linear(6, 250).double(), random(3, 10, 6)
    valid = torch.tensor([True, True, False])
    sums = [0.0, 0.0]
    for row, end in [(0, 9), (1, 8)]:
        for at in range(end - 3, end - 1):
            scores = head(hidden[row, at]).detach().numpy()
            sums[row % 2] -= float(logs(scores)[int(laid.ids_RT[row, at + 1])])
    found = language.language(head, hidden, laid, valid, 2)
    assert found.sum.item() == pytest.approx(sum(sums), rel=1e-12)
    assert found.by_source_2S[0].tolist() == pytest.approx(sums, rel=1e-12)
    assert found.by_source_2S[1].tolist() == [2, 2]


def test_language_never_predicts_the_first_token_of_a_segment_from_another_sample() -> None:
    laid = rows([4], learnt=2, queries=0)
    laid.segment_RT[0, 2:] = 2
    assert language.predicted(laid, torch.tensor([True])).tolist() == [[False, False, True]]


def test_classify_is_the_weighted_sum_and_skips_unknown_labels() -> None:
    torch.manual_seed(0)
    heads = nn.ModuleDict({"concept": nn.Linear(4, 3), "group": nn.Linear(4, 2)}).double()
    features = random(3, 5, 4)
    labels = {"concept": torch.tensor([0, 2, 1]), "group": torch.tensor([1, -1, 0])}
    weights, expected = {"concept": 1.0, "group": 0.5}, 0.0
    for name, sample in [("concept", 0), ("concept", 1), ("group", 0)]:
        found = logs(heads[name](features[sample].mean(0)).detach().numpy())
        expected -= weights[name] * (0.9 * found[int(labels[name][sample])] + 0.1 * found.mean())
    valid = torch.tensor([True, True, False])
    loss = classify.classify(heads, features, labels, weights=weights, valid_B=valid, smoothing=0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-10)


def seen(number: int) -> Seen:
    """Two samples of things `10 * number` and `10 * number + 1`, whose tensors tell which they are."""
    own = torch.tensor([10.0 * number, 10.0 * number + 1])
    ids = own.long()[:, None].expand(2, 3)
    return Seen(
        images_GQJ=own[:, None, None].expand(2, 2, 4),
        texts_GJ=own[:, None].expand(2, 4),
        group_G=own.long(),
        valid_G=torch.tensor([True, number != 2]),
        features_GND=own[:, None, None].expand(2, 5, 6),
        ids_GT=ids,
        mask_GT=torch.ones_like(ids),
    )


def test_the_memory_keeps_the_last_micro_batches_newest_first() -> None:
    memory = Memory(2)
    assert memory.beside(seen(0)).group_C.tolist() == [0, 1]
    for number in range(4):
        memory.remember(seen(number))
    pool = memory.beside(seen(4))
    assert pool.group_C.tolist() == [40, 41, 30, 31, 20, 21]
    assert pool.valid_C.tolist() == [True, True, True, True, True, False]
    assert pool.texts_CJ[:, 0].tolist() == pool.images_CQJ[:, 1, 3].tolist() == pool.group_C.tolist()
    assert pool.ids_CT[:, 2].tolist() == pool.group_C.tolist()
    assert pool.features_of(torch.tensor([5, 0, 3]))[:, 4, 5].tolist() == [21, 40, 31]
    nothing = Memory(0)
    nothing.remember(seen(0))
    assert nothing.beside(seen(1)).group_C.tolist() == [10, 11]


def test_a_memory_is_laid_out_anew_from_what_a_checkpoint_says_of_it() -> None:
    memory, again = Memory(3), Memory(3)
    for number in range(2):
        memory.remember(seen(number))
    again.lay_out(json.loads(json.dumps(memory.layout())), torch.device("cpu"))
    into, of = again.tensors(), memory.tensors()
    assert into.keys() == of.keys() == {"0", "1"}
    for age, tensors in of.items():
        for name, tensor in tensors.items():
            assert into[age][name].dtype == tensor.dtype
            into[age][name].copy_(tensor)
    assert again.beside(seen(2)).group_C.tolist() == [20, 21, 10, 11, 0, 1]
