"""Samples of one picture that share it learn exactly what they would learn apart, and never see one another."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tiny import QUERIES, build_checkpoint
from tests.training_jobs import picture
from training.assemble import Assembly, Places, Told, assemble
from training.data.batch import TEXT, Batch
from training.data.record import Draw
from training.data.rows import Piece, Placed, attention, layout, useful
from training.data.sharing import Strand, trees, untils
from training.data.writer import write_dataset
from training.distributed import World
from training.losses.language import predicted
from training.model import there
from training.peers import Peers
from training.progress import Progress
from training.recipe import Compute, Images, Recipe, Source, Text

EACH = 3
PICTURES = 6
WORDS = {"en": ("cat", "the", "hat", "dog", "a", "that"), "zh": ("一只", "猫", "狗", "什么", "图")}
SHARE = Text(layout="share", row_positions=400)


def captions(number: int) -> dict[str, Any]:
    """Texts of random lengths, in each language as many as a visit has samples; the last picture has one."""
    draw, count = random.Random(number), EACH if number < PICTURES - 1 else 1
    made = {
        language: [" ".join(draw.choices(words, k=draw.randint(1, 9))) + f" {n}" for n in range(count)]
        for language, words in WORDS.items()
    }
    return {"caption": made}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    write_dataset(folder / "data", ((captions(n), [picture(n)]) for n in range(PICTURES)), name="data")
    broken = ((captions(n), [picture(n)[: 60 if n == 1 else None]]) for n in range(PICTURES))
    write_dataset(folder / "broken", broken, name="broken")
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("reading"), reads_instruction=True)


def assembled(base: Path, data: Path, text: Text, *, name: str = "data", images: Images | None = None) -> Assembly:
    sources = [Source(name, language=language, samples_each=EACH) for language in ("en", "zh")]
    # The last source takes one sample of a record.
    recipe = Recipe(
        stage="align",
        losses={"lm": 1.0},
        learn={"qformer": 1.0, "projection": 1.0},
        data=(*sources, Source(name, ratio=0.2)),
        text=text,
        images=images or Images(augment="crop"),
        compute=Compute(precision="float32"),
        seed=3,
    )
    made = assemble(recipe, Places(base, data, data / "cache"), Told(World(), Progress((), None)))
    made.objectives.double().eval()
    return made


def draws(made: Assembly, count: int = 33) -> Sequence[Draw]:
    return made.mixture.plan(made.mixture.start(), count)[0]


def batch_of(made: Assembly, drawn: Sequence[Draw]) -> tuple[Batch, list[tuple[str, str]]]:
    (batch,), bad = made.collator.batches(0, [drawn], 0, len(drawn))
    assert batch.pictures is not None
    pixels = batch.pictures.pixels_I3SS
    return (
        replace(batch, pictures=replace(batch.pictures, pixels_I3SS=pixels.double())) if pixels is not None else batch
    ), bad


def learnt(made: Assembly, batch: Batch) -> tuple[float, Tensor, Tensor]:
    """Loss, losses by source and all gradients of a batch."""
    made.objectives.zero_grad()
    losses = made.objectives(batch, Peers())
    losses.sums["lm"].backward()
    gradients = [weight.grad.flatten() for weight in made.objectives.parameters() if weight.grad is not None]
    return losses.sums["lm"].item(), losses.by_source, torch.cat(gradients)


def apart_by(found: Tensor, expected: Tensor) -> float:
    """Relative to the whole: LLaMA's norms compute in float32, whatever the weights are."""
    return float((found - expected).norm() / expected.norm())


def sample_losses(made: Assembly, batch: Batch) -> dict[int, list[float]]:
    """The losses of each sample's tokens, by its place in the batch."""
    model, rows = made.objectives.model, batch.rows
    assert rows is not None
    assert batch.pictures is not None
    assert batch.pictures.pixels_I3SS is not None
    with torch.no_grad():
        tokens = model.tokens(model.features(batch.pictures.pixels_I3SS), batch.instructions)
        logits = there(model.llama, "llama").lm_head(model.hidden(rows, tokens))[:, :-1]
    lost = torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows.ids_RT[:, 1:], reduction="none")
    chosen = predicted(rows, batch.valid_B)
    return {
        int(sample): lost[chosen & (rows.sample_RT[:, 1:] == sample)].tolist() for sample in rows.sample_RT.unique()
    }


@pytest.mark.parametrize("room", [140, 220, 400])
def test_losses_and_gradients_are_those_of_rows_of_their_own(plain: Path, data: Path, room: int) -> None:
    """Captions of random lengths in two languages, several pictures, one of them with a single sample."""
    apart, shared = (
        assembled(plain, data, Text(layout="pad")),
        assembled(plain, data, replace(SHARE, row_positions=room)),
    )
    drawn = draws(apart)
    assert drawn == draws(shared)
    (one, _), (other, _) = batch_of(apart, drawn), batch_of(shared, drawn)
    assert one.rows is not None
    assert other.rows is not None
    assert one.pictures is not None
    assert other.pictures is not None
    assert bool(one.valid_B.all())
    assert len(one.pictures) == len(drawn)
    assert len(other.pictures) == len({draw.visit for draw in drawn}) < len(drawn) / 3
    assert other.rows.ids_RT.numel() < 0.6 * one.rows.ids_RT.numel()
    assert other.rows.ids_RT.shape[1] <= room
    assert useful(other.rows) == useful(one.rows) == int((one.rows.segment_RT > 0).sum())
    assert apart.objectives.counts(one) == shared.objectives.counts(other)

    loss, by_source, gradients = learnt(apart, one)
    found = learnt(shared, other)
    assert found[0] == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(found[1], by_source, rtol=1e-6, atol=1e-6)
    assert apart_by(found[2], gradients) < 1e-6
    assert float(gradients.abs().max()) > 1e-3


def test_a_sample_never_sees_anothers_text(plain: Path, data: Path) -> None:
    made = assembled(plain, data, SHARE)
    batch, _ = batch_of(made, draws(made))
    before, rows = sample_losses(made, batch), batch.rows
    assert rows is not None
    for sample in before:
        ids = rows.ids_RT.clone()
        ids[(rows.sample_RT == sample) & rows.learnt_RT] = 77
        after = sample_losses(made, replace(batch, rows=replace(rows, ids_RT=ids)))
        assert {other for other in before if after[other] != before[other]} == {sample}


def test_a_visit_takes_every_caption_once_in_one_wording(plain: Path, data: Path) -> None:
    made = assembled(plain, data, SHARE)
    drawn = [draw for draw in draws(made) if draw.turn is not None and draw.item < PICTURES - 1]
    said: dict[tuple[int, int, int], list[tuple[str, str]]] = {}
    for draw in drawn:
        piece = made.collator._read(draw, []).piece  # type: ignore[union-attr]
        asked = tuple(id for id, learns in zip(piece.ids, piece.learnt, strict=True) if not learns)
        answer = tuple(id for id, learns in zip(piece.ids, piece.learnt, strict=True) if learns)
        said.setdefault((draw.source, draw.item, draw.epoch), []).append((asked, answer))
    whole = [texts for texts in said.values() if len(texts) == EACH]
    assert len(whole) >= 6
    for texts in whole:
        assert len({asked for asked, _ in texts}) == 1
        assert len({answer for _, answer in texts}) == EACH


def test_a_qformer_that_reads_the_instruction_shares_only_among_equal_ones(reading: Path, data: Path) -> None:
    apart, shared = assembled(reading, data, Text(layout="pad")), assembled(reading, data, SHARE)
    drawn = draws(apart)
    (one, _), (other, _) = batch_of(apart, drawn), batch_of(shared, drawn)
    assert other.pictures is not None
    assert other.instructions is not None
    # Two languages ask in two ways, so that a visit has two sets of visual tokens.
    assert len(other.pictures) == len(other.instructions.ids_BT) == len({(draw.visit, draw.source) for draw in drawn})
    loss, _, gradients = learnt(apart, one)
    found = learnt(shared, other)
    assert found[0] == pytest.approx(loss, rel=1e-12)
    assert apart_by(found[2], gradients) < 1e-6


def test_cached_features_are_read_once_a_visit(plain: Path, data: Path) -> None:
    images = Images(augment="none", cache="features")
    apart, shared = (assembled(plain, data, text, images=images) for text in (Text(layout="pad"), SHARE))
    drawn = draws(apart)
    (one, _), (other, _) = batch_of(apart, drawn), batch_of(shared, drawn)
    assert other.pictures is not None
    assert len(other.pictures) == len({draw.visit for draw in drawn})
    apart.objectives.float()
    shared.objectives.float()
    assert learnt(shared, other)[0] == pytest.approx(learnt(apart, one)[0], rel=1e-6)


def test_a_broken_picture_spoils_every_sample_that_shows_it_and_no_other(plain: Path, data: Path) -> None:
    apart, shared = (assembled(plain, data, text, name="broken") for text in (Text(layout="pad"), SHARE))
    drawn = draws(apart)
    (one, bad), (other, found) = batch_of(apart, drawn), batch_of(shared, drawn)
    assert sorted(found) == sorted(bad)
    assert len(bad) == sum(draw.item == 1 for draw in drawn) > 1
    assert other.valid_B.tolist() == one.valid_B.tolist() == [draw.item != 1 for draw in drawn]
    assert learnt(shared, other)[0] == pytest.approx(learnt(apart, one)[0], rel=1e-12)


def placed(samples: Sequence[tuple[int, Sequence[int], int]]) -> list[Placed]:
    """Samples as picture, text and how much of its end is learnt, at least one token before it being not."""
    made = []
    for number, (shown, text, tail) in enumerate(samples):
        visual = [*range(QUERIES), *([TEXT] * len(text))]
        marks = [at >= len(visual) - tail for at in range(len(visual))]
        made.append((number, number % 2, shown, Piece([0] * QUERIES + list(text), visual, marks)))
    return made


SAMPLES = st.lists(
    st.tuples(st.integers(0, 2), st.lists(st.integers(5, 6), min_size=3, max_size=9), st.integers(1, 2)), max_size=14
)


@settings(deadline=None)
@given(SAMPLES, st.integers(13, 40))
def test_every_position_sees_exactly_what_comes_before_it_in_its_own_sample(
    samples: list[tuple[int, list[int], int]], room: int
) -> None:
    pieces = placed(samples)
    rows = layout(pieces, Text(layout="share", row_positions=room), QUERIES)
    assert rows.ids_RT.shape[1] <= room
    sees = attention(rows, torch.float32)[:, 0] == 0 if len(samples) else torch.zeros(0)
    learnt_at: dict[int, int] = {}
    for row in range(len(rows.ids_RT)):
        for at in (rows.segment_RT[row] > 0).nonzero()[:, 0].tolist():
            number, shown, piece = (pieces[int(rows.sample_RT[row, at])][n] for n in (0, 2, 3))
            before = sees[row, at].nonzero()[:, 0]
            assert before[-1] == at
            assert rows.position_RT[row, before].tolist() == list(range(len(before)))
            assert rows.ids_RT[row, before].tolist() == piece.ids[: len(before)]
            visual = [one if one == TEXT else one + shown * QUERIES for one in piece.visual]
            assert rows.visual_RT[row, before].tolist() == visual[: len(before)]
            assert bool(rows.learnt_RT[row, at]) == piece.learnt[len(before) - 1]
            learnt_at[number] = learnt_at.get(number, 0) + int(rows.learnt_RT[row, at])
    # Everything that is learnt is there once, and its sample's position before it, too.
    assert learnt_at == {number: sum(piece.learnt) for number, _, _, piece in pieces}
    assert int(predicted(rows, torch.ones(max(1, len(samples)), dtype=torch.bool)).sum()) == sum(learnt_at.values())
    assert useful(rows) == sum(len(piece.ids) for *_, piece in pieces)


def test_rows_worked_by_hand() -> None:
    samples = [(0, [5, 6, 7, 8], 1), (1, [5, 6, 7, 8], 1), (0, [5, 6, 9, 4], 2), (0, [6, 6, 7], 1)]
    rows = layout(placed(samples), Text(layout="share", row_positions=64), QUERIES)
    # With the first sample the third shares its picture and 5, since 6 predicts what it learns; the fourth the picture.
    assert rows.sample_RT[0, :23].tolist() == [0] * 8 + [2] * 3 + [3] * 3 + [1] * 8 + [0]
    assert rows.position_RT[0, 8:14].tolist() == [5, 6, 7, 4, 5, 6]
    assert rows.until_RT is not None
    assert rows.until_RT[0].tolist() == [14, 14, 14, 14, 11, 8, 8, 8, 11, 11, 11, 14, 14, 14, *[22] * 8, 0, 0]
    assert useful(rows) == 31


def test_without_a_picture_or_with_another_nothing_is_shared() -> None:
    text = [(TEXT, 5)] * 6
    seen = [[(0, 0), (1, 0), *text], [(2, 0), (3, 0), *text]]
    assert trees([Strand(text, 0, 5), Strand(text, 0, 5)], 50) == [[(0, 0)], [(1, 0)]]
    assert trees([Strand(seen[0], 2, 5), Strand(seen[1], 2, 5)], 50) == [[(0, 0)], [(1, 0)]]
    assert trees([Strand(seen[0], 2, 5), Strand(seen[0], 2, 4)], 50) == [[(0, 0), (1, 4)]]
    # A picture that would not be shared in whole is not shared, and neither is a tree wider than a row.
    assert trees([Strand(seen[0], 2, 1), Strand(seen[0], 2, 5)], 50) == [[(0, 0)], [(1, 0)]]
    assert trees([Strand(seen[0], 2, 4)] * 3, 13) == [[(0, 0), (1, 4)], [(2, 0)]]
    assert untils([4, 4, 3], [(0, 0), (1, 2), (2, 1)]) == [8, 6, 4, 4, 6, 6, 8, 8]
