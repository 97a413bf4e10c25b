"""Evaluation: retrieval against brute force, answers against transformers' generate, whole checks on a small model."""

from __future__ import annotations

import io
import json
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tests import tiny
from tests.micro_batches import captions, objectives, recipe
from training.answers import Prompt, answers, is_right
from training.data.captions import Captioner
from training.data.record import Record
from training.data.rows import Encoder
from training.data.shards import Dataset
from training.data.writer import write_dataset
from training.distributed import World, spread
from training.errors import BadConfig, BadData
from training.evaluate import MAX_ANSWER, Examiner, check_names, in_eval_mode, write_report
from training.heldout import spaced
from training.model import VisualLanguageModel, there
from training.recipe import Check, Compute, Text
from training.retrieval import Ranking, recalls, reranked, retrieval
from training.truths import asked
from training.unsharded import unsharded
from ziya.instruction import load_instruction_tokenizer
from ziya.model.qformer import QFormerModule

PATCHES, WIDTH = 5, 32
PROCESSES = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With retrieval heads, and a Q-Former that reads the instruction."""
    return tiny.build_checkpoint(tmp_path_factory.mktemp("checkpoint"), retrieval=True, reads_instruction=True)


@pytest.fixture
def model(checkpoint: Path) -> VisualLanguageModel:
    return VisualLanguageModel.load(checkpoint)


def qformer() -> QFormerModule:
    torch.manual_seed(3)
    return tiny.qformer_module(text=True, retrieval=True)


# Retrieval.


def test_recalls_of_four_by_four_worked_by_hand() -> None:
    # Each row's columns, best first. Things 1 and 3 are of one group.
    best = torch.tensor([[0, 1, 2, 3], [3, 0, 2, 1], [0, 1, 3, 2], [2, 0, 1, 3]])
    found = recalls(best, torch.tensor([0, 1, 2, 1]))
    # At 1: row 0 itself, row 1 by its group's 3; rows 2 and 3 have others first. At 5 all four columns count.
    assert found == {1: 0.5, 5: 1.0, 10: 1.0}
    twelve = torch.arange(12).expand(12, 12)
    assert recalls(twelve, torch.arange(12)) == {1: 1 / 12, 5: 5 / 12, 10: 10 / 12}


def test_matching_reorders_only_its_candidates() -> None:
    ranking = Ranking(torch.tensor([[0.9, 0.8, 0.7, 0.6]]), torch.tensor([[2, 0, 3, 1]]))
    # Sums: 0.9 - 1 = -0.1, 0.8 + 0.5 = 1.3, 0.7 + 0.4 = 1.1; the fourth was not matched.
    assert reranked(ranking, torch.tensor([[-1.0, 0.5, 0.4]]), 1.0).tolist() == [[0, 3, 2, 1]]
    # Colder, the cosine decides more: 1.8 - 1 = 0.8, 1.6 + 0.5 = 2.1, 1.4 + 0.4 = 1.8; then 9 - 1 = 8, 8.5, 7.4.
    assert reranked(ranking, torch.tensor([[-1.0, 0.5, 0.4]]), 0.5).tolist() == [[0, 3, 2, 1]]
    assert reranked(ranking, torch.tensor([[-1.0, 0.5, 0.4]]), 0.1).tolist() == [[0, 2, 3, 1]]


def brute_force(module: QFormerModule, features: Tensor, texts: Any, groups: Sequence[str], top_k: int) -> Any:
    """Pair by pair in numpy, at a temperature of 0.5."""
    count = len(groups)
    with torch.no_grad():
        images = [module.embed_image(features[n : n + 1])[0].numpy() for n in range(count)]
        words = [module.embed_text(texts.ids_BT[n : n + 1], texts.mask_BT[n : n + 1])[0].numpy() for n in range(count)]
        itc, itm = np.zeros((count, count)), np.zeros((count, count))
        for i in range(count):
            for t in range(count):
                itc[i, t] = max(float(np.dot(query, words[t])) for query in images[i])
                pair = module.match(features[i : i + 1], texts.ids_BT[t : t + 1], texts.mask_BT[t : t + 1])
                itm[i, t] = float(pair[0, 1] - pair[0, 0]) + itc[i, t] / 0.5
    found: dict[str, float] = {}
    for way, first, again in (("i2t", itc, itm), ("t2i", itc.T, itm.T)):
        for k in (1, 5, 10):
            hits = {"itc": 0, "itm": 0}
            for row in range(count):
                order = sorted(range(count), key=lambda column: -first[row, column])
                matched = sorted(order[:top_k], key=lambda column: -again[row, column])
                for kind, columns in (("itc", order), ("itm", matched + order[top_k:])):
                    hits[kind] += any(groups[column] == groups[row] for column in columns[:k])
            found |= {f"{kind}_{way}_r{k}": hit / count for kind, hit in hits.items()}
    return found


@pytest.mark.parametrize("top_k", [3, 12, 14, 128])
def test_retrieval_is_what_brute_force_finds(top_k: int) -> None:
    module, count = qformer(), 14
    features = torch.randn(count, PATCHES, WIDTH)
    texts = captions([4 + n % 5 for n in range(count)])
    groups = [f"thing {n % 11}" for n in range(count)]
    heard: list[str] = []
    found = retrieval(module, features, texts, groups, top_k=top_k, temperature=0.5, batch=4, beat=heard.append)
    assert found == pytest.approx(brute_force(module, features, texts, groups, top_k))
    assert len(found) == 12
    assert heard


def test_retrieval_refuses_what_does_not_belong_together() -> None:
    with pytest.raises(ValueError, match="2 images, 3 texts, 2 groups"):
        retrieval(qformer(), torch.zeros(2, PATCHES, WIDTH), captions([3, 3, 3]), ["a", "b"])


# Answers.


def prompts_and_tokens() -> tuple[list[Prompt], list[Tensor]]:
    """Without a picture, with one, with two, and a second of equal length."""
    torch.manual_seed(4)
    layouts = [[-1] * 5, [*range(4), -1, -1, -1], [*range(4), -1, *range(4, 8), -1], [-1, *range(4), -1, -1]]
    prompts = [Prompt([0 if at >= 0 else 260 + n + at % 7 for at in one], one) for n, one in enumerate(layouts)]
    return prompts, [torch.randn(max(one) + 1, WIDTH) for one in layouts]


def generated(model: VisualLanguageModel, prompt: Prompt, tokens: Tensor, most: int) -> list[int]:
    """By transformers, one prompt alone."""
    llama, projection = there(model.llama, "llama"), there(model.language_projection, "projection")
    words = llama.get_input_embeddings()
    row = [
        words(torch.tensor(word)) if place < 0 else projection(tokens[place])
        for word, place in zip(prompt.ids, prompt.visual, strict=True)
    ]
    how = {"attention_mask": torch.ones(1, len(row), dtype=torch.long), "max_new_tokens": most, "do_sample": False}
    ids = llama.generate(inputs_embeds=torch.stack(row)[None], **how)
    ends = llama.config.eos_token_id
    kept: list[int] = [i for i in ids[0].tolist() if i not in (ends if isinstance(ends, list) else [ends])]
    return kept


def set_ends(model: VisualLanguageModel, ends: int | list[int]) -> None:
    llama = there(model.llama, "llama")
    llama.config.eos_token_id = llama.generation_config.eos_token_id = ends


@torch.no_grad()
def test_answers_are_those_of_transformers(model: VisualLanguageModel) -> None:
    model.eval()
    prompts, tokens = prompts_and_tokens()
    free = answers(model, prompts, tokens, max_tokens=9)
    assert free == [generated(model, one, seen, 9) for one, seen in zip(prompts, tokens, strict=True)]
    assert len({tuple(one) for one in free}) > 1
    assert answers(model, prompts, tokens, max_tokens=9, batch=1) == free


@torch.no_grad()
def test_an_answer_ends_at_any_end_token(model: VisualLanguageModel) -> None:
    model.eval()
    prompts, tokens = prompts_and_tokens()
    free = answers(model, prompts, tokens, max_tokens=9)
    ends = [free[0][4], free[1][2]]
    set_ends(model, ends)
    ended = answers(model, prompts, tokens, max_tokens=9)
    assert ended == [generated(model, one, seen, 9) for one, seen in zip(prompts, tokens, strict=True)]
    assert all(not set(one) & set(ends) for one in ended)
    assert len(ended[1]) <= 2


@pytest.mark.parametrize(
    ("said", "truth", "language", "right"),
    [
        (" A  Red\nfox ", "a red fox", "en", True),
        ("a red fox.", "a red fox", "en", False),
        ("红狐狸\n", " 红狐狸", "zh", True),
        ("红 狐狸", "红狐狸", "zh", False),
        ("USB接口", "usb接口", "zh", False),
    ],
)
def test_an_exact_answer(said: str, truth: str, language: str, right: bool) -> None:
    assert is_right(said, ["something else", truth], language) is right


# What is asked.


def record(**fields: Any) -> Record:
    return Record("shard-00000:0", fields, 1)


def test_every_listed_answer_to_the_question_is_right() -> None:
    pairs = [
        {"question": {"en": "Which animal?"}, "answer": [{"en": ["fox", "a fox"]}, {"en": "vixen"}, {"zh": "狐狸"}]},
        {"question": {"en": "Which colour?"}, "answer": "red"},
    ]
    one = asked(record(vqa=pairs), Check("d", task="vqa"), {})
    assert one.conversation.turns[0].text == "Which animal?"
    assert one.truths == ("fox", "a fox", "vixen")


def test_every_caption_in_the_language_is_right_in_the_first_wording() -> None:
    check = Check("d", templates="name", language="zh")
    one = asked(
        record(caption={"zh": ["狐狸", "红狐"], "en": "fox"}), check, {"name": {"zh": ("这是什么？", "叫什么？")}}
    )
    assert one.conversation.turns[0].text == "这是什么？"
    assert one.truths == ("狐狸", "红狐")


def test_a_dialogue_is_asked_its_last_question() -> None:
    def turns(last: str) -> dict[str, Any]:
        said = ["Hello?", "Yes.", "And now?", last]
        return {"turns": [{"role": ("user", "assistant")[n % 2], "text": text} for n, text in enumerate(said)]}

    one = asked(record(dialogue=[turns("No."), turns("Not yet.")]), Check("d", task="dialogue"), {})
    assert [turn.text for turn in one.conversation.turns] == ["Hello?", "Yes.", "And now?", "No."]
    assert one.truths == ("No.", "Not yet.")


# Whole checks.


def png(shade: int) -> bytes:
    pixels = np.random.default_rng(shade).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def dataset(folder: Path, texts: Sequence[Any], *, broken: Sequence[int] = ()) -> Dataset:
    """A picture each; the files of the `broken` are cut off."""
    samples = [
        ({"caption": text, "group": str(n)}, [png(n)[: 90 if n in broken else None]]) for n, text in enumerate(texts)
    ]
    return write_dataset(folder, samples, name=folder.name)


def examiner(model: VisualLanguageModel, folder: Path, checks: Sequence[Check], world: World | None = None) -> Examiner:
    tokenizer = Tokenizer.from_file(str(folder / "llama" / "tokenizer.json"))
    return Examiner(
        model,
        checks,
        {check.data: Dataset.open(check.data) for check in checks},
        world or World(),
        tokenizer=tokenizer,
        encoder=Encoder(tokenizer, model.config.prompt, model.config.queries, Text()),
        captioner=Captioner(load_instruction_tokenizer(folder), 32),
    )


def test_whole_answers_are_compared(model: VisualLanguageModel, checkpoint: Path, tmp_path: Path) -> None:
    """The truth of every other picture is what transformers makes the model say to the prompt that serving has."""
    question, template = "What is it?", model.config.prompt
    asks = Check(str(tmp_path / "data"), templates="name")
    made = examiner(model, checkpoint, [])
    assert made.tokenizer is not None
    assert made.captioner is not None
    ids = made.tokenizer.encode(template.human + question + template.bot, add_special_tokens=False).ids
    prompt = Prompt([0] * tiny.QUERIES + ids, [*range(tiny.QUERIES)] + [-1] * len(ids))
    texts: list[Any] = []
    with torch.no_grad(), in_eval_mode(model):
        for number in range(6):
            pixels = model.preprocessing(np.asarray(Image.open(io.BytesIO(png(number)))))
            features = model.features(torch.from_numpy(pixels)[None])
            seen = model.tokens(features, made.captioner.instructions([question]))[0]
            said = made.tokenizer.decode(generated(model, prompt, seen, MAX_ANSWER))
            texts.append(said if number % 2 and said.strip() else "something else")
    right = sum(text != "something else" for text in texts)
    samples = [({"caption": {"en": text}}, [png(n)]) for n, text in enumerate(texts)]
    write_dataset(tmp_path / "data", samples, name="data", templates={"name": {"en": (question, "And this?")}})
    assert right > 0
    assert examiner(model, checkpoint, [asks])() == {"caption/en.exact": right / 6}


def test_bad_records_are_counted_and_left_out(model: VisualLanguageModel, checkpoint: Path, tmp_path: Path) -> None:
    texts = [{"en": f"thing {n}", "zh": "狗"} for n in range(5)] + [{"zh": "猫"}]
    place = str(tmp_path / "data")
    dataset(tmp_path / "data", texts, broken=[2])
    checks = [Check(place, kind="retrieval", language="en"), Check(place, kind="retrieval", language="zh")]
    found = examiner(model, checkpoint, checks)()
    assert found["retrieval/en.bad"] == 2 / 6
    assert found["retrieval/zh.bad"] == 1 / 6
    # Four things are left in English: each is among its five best.
    assert found["retrieval/en.itc_i2t_r5"] == 1.0
    assert 0 <= found["retrieval/en.itm_t2i_r1"] <= 1


def _process(rank: int, store: Path, checkpoint: Path, data: Path) -> None:
    """First each process has the whole model, then it is sharded."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(store), 2), rank=rank, world_size=2)
    world = World(rank, 2)
    found = [examiner(VisualLanguageModel.load(checkpoint), checkpoint, checks_of(data), world)()]
    made = objectives(checkpoint, recipe("lm", "itc"), dtype=torch.float32)
    spread(made, made.blocks(), Compute(precision="float32", strategy="fsdp"), world)
    with unsharded(made):
        found.append(examiner(made.model, checkpoint, checks_of(data), world)())
    assert all(isinstance(weight, DTensor) for weight in made.parameters())
    (store.parent / f"{rank}.json").write_text(json.dumps(found), "utf-8")
    dist.destroy_process_group()


def checks_of(data: Path) -> list[Check]:
    return [Check(str(data), kind="retrieval", top_k=4), Check(str(data), limit=5)]


def test_two_processes_find_what_one_finds(model: VisualLanguageModel, checkpoint: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    dataset(data, [{"en": f"thing {n}"} for n in range(7)], broken=[2])
    processes = [PROCESSES.Process(target=_process, args=(r, tmp_path / "store", checkpoint, data)) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    found = examiner(model, checkpoint, checks_of(data))()
    assert found["retrieval/en.bad"] == 1 / 7
    assert [json.loads((tmp_path / f"{rank}.json").read_text("utf-8")) for rank in range(2)] == [[found] * 2] * 2


def test_a_limit_takes_evenly_spaced_records(model: VisualLanguageModel, checkpoint: Path, tmp_path: Path) -> None:
    assert spaced(10, None) == list(range(10))
    assert spaced(10, 4) == [0, 2, 5, 7]
    assert spaced(3, 9) == [0, 1, 2]
    dataset(tmp_path / "data", [{"en": f"thing {n}"} for n in range(6)], broken=[1, 3, 5])
    found = examiner(model, checkpoint, [Check(str(tmp_path / "data"), kind="retrieval", limit=3)])()
    assert "retrieval/en.bad" not in found
    assert found["retrieval/en.itc_t2i_r5"] == 1.0


def test_features_are_kept_only_where_it_is_said(model: VisualLanguageModel, checkpoint: Path, tmp_path: Path) -> None:
    dataset(tmp_path / "data", [{"en": f"thing {n}"} for n in range(12)])
    made = examiner(model, checkpoint, [Check(str(tmp_path / "data"), kind="retrieval")])
    first = made(keep_features=True)
    with torch.no_grad():
        for weight in there(model.vision, "vision").parameters():
            weight.normal_(std=2.0)
    assert made(keep_features=True) == first
    assert made() != first


def test_two_checks_of_one_name_are_told_apart() -> None:
    checks = [Check("a"), Check("b"), Check("a", language="zh"), Check("c")]
    assert check_names(checks) == ["caption/en", "caption/en#2", "caption/zh", "caption/en#3"]


def test_modes_are_restored_after_an_error() -> None:
    module = nn.Sequential(nn.Dropout(), nn.Linear(1, 1), nn.ReLU(inplace=True))
    module[1].eval()
    seen: list[bool] = []
    module.register_forward_hook(lambda *_: seen.extend(one.training for one in module.modules()))
    with in_eval_mode(module):
        module(torch.ones(1, 1))
    with pytest.raises(RuntimeError), in_eval_mode(module):
        module(torch.ones(7, 7))
    assert seen == [False] * 4
    assert [one.training for one in module] == [True, False, True]


def test_what_cannot_be_checked_is_refused(model: VisualLanguageModel, checkpoint: Path, tmp_path: Path) -> None:
    dataset(tmp_path / "data", [{"en": "fox"}])
    chinese = Check(str(tmp_path / "data"), kind="retrieval", language="zh")
    with pytest.raises(BadData, match="retrieval/zh: none of the 1 records"):
        examiner(model, checkpoint, [chinese])()
    without = VisualLanguageModel.load(tiny.build_checkpoint(tmp_path / "plain"))
    with pytest.raises(BadConfig, match="no retrieval heads"):
        examiner(without, checkpoint, [chinese])()


def test_the_report_is_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "stage" / "evaluation.json"
    write_report(path, "align", 50, {"caption/zh.exact": 0.5})
    write_report(path, "align", 100, {"caption/zh.exact": 0.75})
    assert json.loads(path.read_text("utf-8")) == {
        "stage": "align",
        "step": 100,
        "metrics": {"caption/zh.exact": 0.75},
    }
    assert [file.name for file in path.parent.iterdir()] == ["evaluation.json"]
