"""Retrieval against brute force and by hand, answers against transformers' own generate, checks on a real dataset."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import bert_tokenizer, qformer_module
from tests.training_jobs import make_folder
from training.answers import Prompt, answers, is_right
from training.assemble import Places, Told, assemble
from training.data.captions import Captioner
from training.distributed import World
from training.errors import BadConfig
from training.model import VisualLanguageModel
from training.progress import Progress
from training.recipe import Check, Compute, Recipe, Source
from training.retrieval import recalls, retrieval, similarities


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("held"), samples=24, broken=(5,))


def test_recalls_of_a_case_worked_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.3, 0.2, 0.1]])
    same = torch.tensor([0, 1, 2])
    assert recalls(scores, same)[1] == pytest.approx(1 / 3)
    # The third picture's text is its worst, but the first text is of the same thing.
    assert recalls(scores, torch.tensor([0, 1, 0]))[1] == pytest.approx(2 / 3)
    assert recalls(scores, same)[5] == 1.0


def test_retrieval_and_reranking_of_all_pairs_equal_brute_force() -> None:
    torch.manual_seed(0)
    qformer = qformer_module(text=True, retrieval=True)
    features = torch.randn(6, 5, 32)
    captions = Captioner(bert_tokenizer(), 16).batch(["a cat", "dog", "猫", "a hat", "that", "the"])
    groups = ["a", "b", "c", "a", "d", "e"]
    found = retrieval(qformer, features, captions, groups, top_k=6, batch=4)
    cosine, match = torch.zeros(6, 6), torch.zeros(6, 6)
    with torch.no_grad():
        for image in range(6):
            picture = features[image : image + 1]
            for text in range(6):
                ids, mask = captions.ids_BT[text : text + 1], captions.mask_BT[text : text + 1]
                cosine[image, text] = (qformer.embed_image(picture)[0] @ qformer.embed_text(ids, mask)[0]).max()
                match[image, text] = qformer.match(picture, ids, mask)[0, 1]

    torch.testing.assert_close(similarities(qformer, features, captions, 4), cosine, atol=1e-5, rtol=0)
    for name, scores in (
        ("itc_i2t", cosine),
        ("itc_t2i", cosine.T),
        ("itm_i2t", cosine + match),
        ("itm_t2i", (cosine + match).T),
    ):
        right = [groups[int(row.argmax())] == group for row, group in zip(scores, groups, strict=True)]
        assert found[f"{name}_r1"] == pytest.approx(sum(right) / 6)


def test_answers_are_those_of_generate(folder: Path) -> None:
    model = VisualLanguageModel.load(folder / "initial").eval()
    queries, width = model.config.queries, model.config.qformer_width
    prompts = [
        Prompt([0] * queries + [270, 271, 272], [*range(queries), -1, -1, -1]),
        Prompt([265, 266], [-1, -1]),
        Prompt([0] * queries + [280, 281, 290], [*range(queries), -1, -1, -1]),
    ]
    tokens = [torch.randn(queries, width, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    said = answers(model, prompts, tokens, end=2, max_tokens=8, batch=2)

    assert model.llama is not None
    assert model.language_projection is not None
    for prompt, shown, ids in zip(prompts, tokens, said, strict=True):
        words = model.llama.get_input_embeddings()(torch.tensor(prompt.ids))
        if prompt.visual[0] == 0:
            words = torch.cat([model.language_projection(shown), words[queries:]])
        expected = model.llama.generate(
            inputs_embeds=words[None], max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0
        )[0].tolist()
        assert ids == (expected[: expected.index(2)] if 2 in expected else expected)


@pytest.mark.parametrize(
    ("said", "truths", "right"),
    [("A  Cat", ["a cat"], True), ("cats", ["cat"], False), ("猫", ["狗", "猫"], True), ("", ["cat"], False)],
)
def test_an_answer_is_right_when_it_is_exactly_one_of_the_truths(said: str, truths: list[str], right: bool) -> None:
    assert is_right(said, truths) is right


def checks(*wanted: Check) -> Recipe:
    return Recipe(
        stage="align",
        losses={"lm": 1.0},
        learn={"projection": 1.0},
        data=(Source("data"),),
        compute=Compute(precision="float32"),
        checks=wanted,
    )


def test_checks_run_on_a_dataset_and_leave_out_what_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    recipe = checks(Check("data", kind="retrieval", language="zh", top_k=4), Check("data", limit=10))
    made = assemble(recipe, Places(folder / "initial", folder, tmp_path), Told(World(), Progress()))
    found = made.examiner()

    assert set(found) >= {"retrieval/zh.itc_i2t_r1", "retrieval/zh.itm_t2i_r10", "caption/en.exact"}
    assert all(0 <= value <= 1 for value in found.values())
    # One broken picture is left out: shares are of 23 pictures.
    first = found["retrieval/zh.itc_i2t_r1"] * 23
    assert first == pytest.approx(round(first), abs=1e-4)


def test_retrieval_needs_a_model_that_can(tiny_checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    recipe = checks(Check("data", kind="retrieval"))
    made = assemble(recipe, Places(tiny_checkpoint, folder, tmp_path), Told(World(), Progress()))
    with pytest.raises(BadConfig, match="retrieval/en"):
        made.examiner()
