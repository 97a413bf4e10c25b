"""The tiny recipe's data: concepts, styles, wordings, tokenizer, examples, on a small fake of the packages' formats."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tokenizers import Tokenizer

from tests.emoji_packages import put, raster
from training.stage_folder import StageFolder, write_json
from training.tiny import examples, questions, ship
from training.tiny.emoji import GROUPS_ZH, TEST_STYLE, TRAIN_STYLES, EmojiData
from training.tiny.pictures import as_png
from training.tiny.tokenizer import convert, corpus, train_sentencepiece
from ziya.checkpoint import read_config

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
    for package in ("noto-v1", "emojione", "emojione-v1"):
        aliases = {"thing-2": {"parent": "old-name"}}
        drawn = {"icons": icons, "aliases": aliases, "width": 16, "height": 16}
        put(root / f"@iconify-json/{package}/icons.json", json.dumps(drawn))
    old = {f"thing{i}": {"body": SVG} for i in range(1, 9)}
    put(root / "@iconify-json/fxemoji/icons.json", json.dumps({"icons": old, "height": 16}))
    return root


def svg() -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{SVG}</svg>'


@pytest.fixture(scope="module")
def data(packages: Path) -> EmojiData:
    return EmojiData(packages)


@pytest.fixture(scope="module")
def tokenizer(data: EmojiData) -> Tokenizer:
    return convert(train_sentencepiece(corpus(list(data.concepts)), 700))


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
    training = data.split().train
    assert {picture.style for picture in training} == set(TRAIN_STYLES)
    assert all(picture.concept.seen for picture in training)
    assert {picture.style for picture in data.test_pictures()} == {TEST_STYLE}
    assert len(data.test_pictures()) == COUNT


def test_icons_are_found_by_name_alias_and_old_flag_name(data: EmojiData) -> None:
    names = {picture.concept.name_en for picture in data.pictures("emojione")}
    assert names == {"thing 1", "thing 2", "flag: Côte & Sea"}


@pytest.mark.parametrize("style", [*TRAIN_STYLES, TEST_STYLE])
def test_every_style_becomes_a_png_of_one_size_with_its_transparency(data: EmojiData, style: str) -> None:
    picture = Image.open(io.BytesIO(as_png(data.pictures(style)[0], 16)))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGBA", (16, 16))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_wordings_are_distinct_and_answers_formattable(language: str) -> None:
    for wordings in (questions.NAME, questions.CATEGORY):
        assert len(set(wordings[language])) == len(wordings[language]) >= 6
    for question, reply in questions.DESCRIBE[language]:
        assert "{" not in question
        assert "{" not in reply.format(name="n", group="g")


@pytest.mark.parametrize("text", ["thing 7", "东西7号", "龘 “x”: 1 &\n é", "Hello  there"])
def test_tokens_give_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_answers_tokenise_alone_as_within_a_dialogue(tokenizer: Tokenizer) -> None:
    parts = ["<human>:", "What is this?", "\n<bot>:", "flag: Côte & Sea", "</s>", "<human>:", "这是什么？", "\n<bot>:"]
    apart = [token for part in parts for token in tokenizer.encode(part, add_special_tokens=False).ids]
    assert tokenizer.encode("".join(parts), add_special_tokens=False).ids == apart


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


def finished(job: Path, model: Path) -> None:
    """What a job leaves that `ship` reads: evaluations, and the last stage's model."""
    for number, stage in enumerate(ship.STAGES):
        metrics = {"caption/en.exact": 0.125 * number, "retrieval/zh.itc_i2t_r1": 0.5}
        write_json(StageFolder(job / f"{stage}-test").evaluation, {"metrics": metrics if number else {}})
    shutil.copytree(model, StageFolder(job / ship.LAST).model)
    StageFolder(job / ship.LAST).finish({})


def test_shipping_puts_the_job_s_model_and_figures_into_one_folder(
    packages: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    finished(tmp_path / "job", tiny_checkpoint)
    size = ship.ship(tmp_path / "job", tmp_path / "shipped", packages)
    shipped = tmp_path / "shipped"
    assert read_config(shipped) == read_config(tiny_checkpoint)
    assert size == sum(path.stat().st_size for path in shipped.rglob("*") if path.is_file())
    card = (shipped / "README.md").read_text("utf-8")
    assert "| exact name, English |  | 12.5% | 25.0% | 37.5% |" in card
    assert "| picture to name, ITC, Chinese |  | 50.0% | 50.0% | 50.0% |" in card
    assert ship.RESULTS not in card
    assert (shipped / "NOTICE").is_file()
    assert (shipped / "examples" / "examples.json").is_file()


def test_nothing_is_shipped_of_a_job_that_is_not_finished(
    packages: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ship.NotFinished, match="chat is not done"):
        ship.ship(tmp_path / "job", tmp_path / "shipped", packages)
    finished(tmp_path / "job", tiny_checkpoint)
    StageFolder(tmp_path / "job" / "align-test").evaluation.unlink()
    with pytest.raises(ship.NotFinished, match="align-test"):
        ship.ship(tmp_path / "job", tmp_path / "shipped", packages)
    assert not (tmp_path / "shipped").exists()


def test_what_is_too_large_is_not_shipped(packages: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    finished(tmp_path / "job", tiny_checkpoint)
    with pytest.raises(ship.NotFinished, match="too large to ship"):
        ship.ship(tmp_path / "job", tmp_path / "shipped", packages, most_bytes=1000)
    assert not (tmp_path / "shipped").exists()
