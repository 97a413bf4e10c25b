"""The tiny checkpoint's data and training rows, on a small fake of the npm packages' own formats."""

import dataclasses
import io
import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from training.tiny import align, connect, dataset, dialogues, evaluate, examples, export, questions, vision
from training.tiny import tokenizer as tokenizers
from training.tiny.augment import augment
from training.tiny.dialogues import Dialogue, Scene, ask, draw_dialogue, then
from training.tiny.emoji import GROUPS_ZH, TEST_STYLE, TRAIN_STYLES, Concept, EmojiData
from training.tiny.model import answer
from training.tiny.optimizer import MasterAdamW
from training.tiny.packing import TEXT, Encoder, fill_row, pack
from training.tiny.pictures import decode_premultiplied
from training.tiny.progress import generator
from training.tiny.recipe import Augmentation, Language, Optimizer, Places, QFormer, Recipe, Vision
from training.tiny.tokenizer import convert, corpus, train_sentencepiece
from ziya.checkpoint import PromptTemplate, fingerprint

GROUPS = tuple(GROUPS_ZH)
FLAG = 0x1F1E8
COUNT = 40
SVG = '<path fill="#0a0" d="M0 0h8v16H0z"/>'


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty emoji: thirty-nine things and a flag, whose second code point is a variation selector."""
    root = tmp_path_factory.mktemp("node_modules")
    codes = [f"{0x1F400 + i:X}" for i in range(COUNT - 1)] + [f"{FLAG:X}-FE0F"]
    names = [f"thing {i}" for i in range(COUNT - 1)] + ["flag: Côte & Sea"]
    entries = [
        {"unified": code, "category": GROUPS[i % 9], "subcategory": ("animal-mammal", "food-fruit")[i % 2]}
        for i, code in enumerate(codes)
    ]
    put(root / "emoji-datasource/emoji.json", json.dumps(entries))
    for language, words in (("en", names), ("zh", [f"东西{i}号" for i in range(COUNT)])):
        texts = {chr(int(c.split("-")[0], 16)): w for c, w in zip(codes, words, strict=True)}
        annotations = {emoji: {"default": [f"k{word}", word], "tts": [word]} for emoji, word in texts.items()}
        for package, key in (("annotations", "annotations"), ("annotations-derived", "annotationsDerived")):
            content = {key: {"annotations": annotations if key == "annotations" else {}}}
            put(root / f"cldr-{package}-full/{key}/{language}/annotations.json", json.dumps(content))
    for code in codes:
        put(root / f"emoji-datasource-google/img/google/64/{code.lower()}.png", raster("PNG", (200, 0, 0, 128)))
        put(root / f"emoji-datasource-twitter/img/twitter/64/{code.lower()}.png", raster("PNG", (0, 0, 200, 255)))
        put(root / f"@lobehub/fluent-emoji-3d/assets/{code.lower()}.webp", raster("WEBP", (0, 200, 0, 255)))
        put(root / f"openmoji/color/svg/{code.removesuffix('-FE0F')}.svg", svg())
    icons = {"thing-1": {"body": SVG}, "flag-for-cote-and-sea": {"body": SVG}, "old-name": {"body": SVG}}
    for package in ("noto-v1", "emojione"):
        aliases = {"thing-2": {"parent": "old-name"}}
        content = {"icons": icons, "aliases": aliases, "width": 16, "height": 16}
        put(root / f"@iconify-json/{package}/icons.json", json.dumps(content))
    return root


def put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def raster(kind: str, colour: tuple[int, int, int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGBA", (64, 64), colour).save(stream, kind)
    return stream.getvalue()


def svg() -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{SVG}</svg>'


@pytest.fixture(scope="module")
def data(packages: Path) -> EmojiData:
    return EmojiData(packages)


@pytest.fixture(scope="module")
def tokenizer(data: EmojiData) -> Tokenizer:
    return convert(train_sentencepiece(corpus(list(data.concepts)), 700))


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> Encoder:
    return Encoder(tokenizer, PromptTemplate(), queries=3)


@pytest.fixture(scope="module")
def scene(data: EmojiData) -> Scene:
    seen = [concept for concept in data.concepts if concept.seen]
    by_group: dict[str, list[Concept]] = {}
    for concept in seen:
        by_group.setdefault(concept.group_en, []).append(concept)
    return Scene(seen[0], seen[1], seen, by_group)


def test_concepts_have_both_names_and_a_tenth_is_unseen(data: EmojiData) -> None:
    assert len(data.concepts) == COUNT
    assert sum(not concept.seen for concept in data.concepts) == COUNT // 10
    flag = next(concept for concept in data.concepts if concept.name_en.startswith("flag"))
    assert (flag.emoji, flag.name("zh")) == (chr(FLAG) + "\ufe0f", "东西39号")
    assert all(concept.group("zh") == GROUPS_ZH[concept.group_en] for concept in data.concepts)


def test_the_split_does_not_depend_on_the_run(data: EmojiData, packages: Path) -> None:
    again = EmojiData(packages)
    assert [concept.seen for concept in data.concepts] == [concept.seen for concept in again.concepts]


def test_training_never_holds_the_test_style_or_an_unseen_concept(data: EmojiData) -> None:
    training = data.training_pictures()
    assert {picture.style for picture in training} == set(TRAIN_STYLES)
    assert all(picture.concept.seen for picture in training)
    assert {picture.style for picture in data.test_pictures()} == {TEST_STYLE}
    assert len(data.test_pictures()) == COUNT


def test_icons_are_found_by_name_alias_and_old_flag_name(data: EmojiData) -> None:
    names = {picture.concept.name_en for picture in data.pictures("emojione")}
    assert names == {"thing 1", "thing 2", "flag: Côte & Sea"}


@pytest.mark.parametrize("style", [*TRAIN_STYLES, TEST_STYLE])
def test_every_style_decodes_to_premultiplied_pixels(data: EmojiData, style: str) -> None:
    pixels = decode_premultiplied(data.pictures(style)[0], 16)
    assert pixels.shape == (4, 16, 16)
    assert (pixels[:3] <= pixels[3]).all()
    assert pixels[3].any()


def test_partners_show_the_same_concept() -> None:
    concepts = torch.tensor([2, 0, 1, 2, 0, 2])
    chosen = torch.arange(6)
    for seed in range(5):
        other = dataset.partners(concepts, chosen, generator(seed, 0))
        assert torch.equal(concepts[other], concepts)


def test_an_epoch_shows_each_picture_once() -> None:
    batches = [dataset.batch_indices(12, 4, seed=1, step=step) for step in range(6)]
    assert sorted(torch.cat(batches[:3]).tolist()) == list(range(12))
    assert torch.cat(batches[:3]).tolist() != torch.cat(batches[3:]).tolist()


def test_augmentation_follows_its_generator() -> None:
    pixels = torch.randint(0, 255, (6, 4, 32, 32), dtype=torch.uint8)
    one, same, other = (augment(pixels, pixels, 24, Augmentation(), generator(7, step)) for step in (1, 1, 2))
    assert one.shape == (6, 3, 24, 24)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_wordings_are_distinct_and_answers_formattable(language: str) -> None:
    for wordings in (questions.NAME, questions.CATEGORY):
        assert len(set(wordings[language])) == len(wordings[language]) >= 6
    for question, reply in questions.DESCRIBE[language]:
        assert "{" not in question
        assert "{" not in reply.format(name="n", group="g")


def test_dialogues_name_the_shown_picture(scene: Scene) -> None:
    draw = random.Random(1)
    assert dialogues.name(scene, draw, "zh").answer == scene.main.name_zh
    assert dialogues.category(scene, draw, "en").answer == scene.main.group_en
    assert dialogues.name_in_other(scene, draw, "en").answer == scene.main.name_zh
    assert dialogues.next_picture(scene, draw, "en").answer == scene.extra.name_en
    assert dialogues.no_picture(scene, draw, "en").turns[0].images == ()


def test_no_dialogue_names_an_unseen_concept(scene: Scene, data: EmojiData) -> None:
    draw = random.Random(2)
    unseen = {concept.name_zh for concept in data.concepts if not concept.seen}
    for _ in range(400):
        dialogue = draw_dialogue(scene, draw)
        said = {dialogue.answer, *(turn.text for turn in dialogue.turns)}
        assert not said & unseen


@pytest.mark.parametrize("text", ["thing 7", "东西7号", "龘 “x”: 1 &\n é", "Hello  there"])
def test_tokens_give_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_answers_tokenise_alone_as_within_a_dialogue(tokenizer: Tokenizer) -> None:
    parts = ["<human>:", "What is this?", "\n<bot>:", "flag: Côte & Sea", "</s>", "<human>:", "这是什么？", "\n<bot>:"]
    apart = [token for part in parts for token in tokenizer.encode(part, add_special_tokens=False).ids]
    assert tokenizer.encode("".join(parts), add_special_tokens=False).ids == apart


def test_all_answers_of_a_dialogue_are_learnt_and_nothing_else(encoder: Encoder) -> None:
    dialogue = then(ask("What is this?", "thing: one"), "那这个呢？", "东西2号", (dialogues.EXTRA,))
    piece = encoder.piece(dialogue)
    learnt = [token for token, is_learnt in zip(piece.ids, piece.learnt, strict=True) if is_learnt]
    assert encoder.tokenizer.decode(learnt, skip_special_tokens=False) == "thing: one</s>东西2号</s>"
    assert [number for number in piece.visual if number != TEXT] == [3, 4, 5]
    assert piece.sees_prefix


def test_dialogues_of_a_row_do_not_see_one_another(encoder: Encoder) -> None:
    about = [
        ask("What is this?", "thing 1"),
        Dialogue(ask("Hello", "Hi", ()).turns, "Hi"),
        ask("这是什么？", "东西1号"),
    ]
    rows = pack([[encoder.piece(dialogue) for dialogue in about]], queries=3, length=64)
    mask, segment = rows.attention(torch.float32)[0, 0] == 0, rows.segment_BT[0]
    first, text_only, last = ((segment == number).nonzero().flatten() for number in (1, -2, 3))
    assert mask[last[-1], :3].all()
    assert mask[last[-1], last].all()
    assert not mask[last[-1], first].any()
    assert not mask[text_only[-1], :3].any()
    assert not mask[last[0], last[1]]
    assert rows.position_BT[0, first[0]] == rows.position_BT[0, last[0]] == 3
    assert rows.position_BT[0, text_only[0]] == 0


def test_rows_are_filled_but_not_over_filled(encoder: Encoder, scene: Scene) -> None:
    pieces = fill_row(scene, encoder, 96, random.Random(3))
    assert 0 < sum(len(piece.ids) for piece in pieces) <= 96 - encoder.queries


def test_greedy_answers_equal_the_library() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, eos_token_id=2
    )
    llama = LlamaForCausalLM(config).eval()
    visual, prompt = torch.randn(2, 3, 16), [5, 6, 7]
    words = llama.model.embed_tokens(torch.tensor(prompt)).expand(2, -1, -1)
    expected = llama.generate(
        inputs_embeds=torch.cat([visual, words], 1),
        attention_mask=torch.ones(2, 6, dtype=torch.long),
        max_new_tokens=5,
        do_sample=False,
        pad_token_id=2,
    )
    for ours, theirs in zip(answer(llama, prompt, visual, 5, 2), expected.tolist(), strict=True):
        assert ours == theirs[: len(ours)]


def test_a_resumed_optimizer_goes_on_as_if_never_stopped() -> None:
    how = Optimizer(steps=6, batch=1, peak_lr=0.01, warmup=2, weight_decay=0.1)

    def run(steps: range, state: dict[str, object] | None) -> tuple[torch.Tensor, MasterAdamW]:
        torch.manual_seed(0)
        module = nn.Linear(4, 4).to(torch.bfloat16)
        optimizer = MasterAdamW(module, how)
        if state is not None:
            optimizer.restore(state)
        for step in steps:
            x = torch.randn(2, 4, generator=generator(0, step)).to(torch.bfloat16)
            module(x).float().square().sum().backward()
            optimizer.step()
        return module.weight.detach().clone(), optimizer

    whole, _ = run(range(6), None)
    _, half = run(range(3), None)
    resumed, _ = run(range(3, 6), half.state())
    assert torch.equal(whole, resumed)


def test_named_weights_learn_at_their_own_rate() -> None:
    torch.manual_seed(0)
    module = nn.ModuleDict({"slow": nn.Linear(4, 4, bias=False), "fast": nn.Linear(4, 4, bias=False)})
    how = Optimizer(steps=10, batch=1, peak_lr=0.01, warmup=1, weight_decay=0.0)
    optimizer = MasterAdamW(module, how, {"slow.": 0.1})
    slow, fast = (master.clone() for master in optimizer.masters)
    sum(weight.square().sum() for weight in module.parameters()).backward()
    optimizer.step()
    moved_slow, moved_fast = (optimizer.masters[0] - slow).abs().mean(), (optimizer.masters[1] - fast).abs().mean()
    assert float(moved_slow / moved_fast) == pytest.approx(0.1, rel=0.01)


def test_examples_are_small_and_say_whether_they_were_seen(data: EmojiData, tmp_path: Path) -> None:
    examples.write(data, tmp_path)
    entries = json.loads((tmp_path / "examples.json").read_text("utf-8"))
    assert entries
    known = {concept.name_en: concept.seen for concept in data.concepts}
    for entry in entries:
        assert entry["seen"] == known[entry["name_en"]]
        assert (tmp_path / entry["file"]).stat().st_size < examples.MAX_BYTES


def test_concepts_are_values(data: EmojiData) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.concepts[0].seen = False  # type: ignore[misc]


def small_recipe(folder: Path, steps: int) -> Recipe:
    """Every step of the recipe at a size that takes a second."""
    train = Optimizer(steps=steps, batch=4, peak_lr=1e-3, warmup=1, weight_decay=0.0)
    return Recipe(
        threads=1,
        vision=Vision(width=16, layers=1, heads=2, validation_concepts=1, train=train),
        qformer=QFormer(queries=2, width=16, layers=1, heads=2),
        connect=train,
        language=Language(vocabulary=900, width=16, intermediate=32, layers=1, heads=2, train=train),
        places=Places(build=folder / "build", checkpoint=folder / "checkpoint"),
    )


def test_the_recipe_makes_a_checkpoint_that_answers_and_goes_on_where_it_stopped(
    data: EmojiData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe(tmp_path, steps=2)
    steps = (vision.train, tokenizers.train, connect.train, align.train, export.export)
    for step in steps:
        step(data, recipe)
    checkpoint = recipe.places.checkpoint
    first = fingerprint(checkpoint / "llama")
    model = evaluate.Model(checkpoint)
    visual_BQD = model.visual(list(data.test_pictures()[:3]))
    assert visual_BQD.shape == (3, 2, 16)
    assert len(model.ask(visual_BQD, "What is this?")) == 3
    capsys.readouterr()
    for step in steps:
        step(data, recipe)
    assert "samples/s" not in capsys.readouterr().out  # finished steps are not trained again
    assert fingerprint(checkpoint / "llama") == first
