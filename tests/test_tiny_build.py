"""The tiny recipe's data and first checkpoint, built from a small fake of the npm packages' own formats."""

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.emoji_packages import COUNT, SMALL, digests, write_packages
from training.data.record import Record
from training.data.shards import Dataset
from training.data.tasks import conversation
from training.recipe import Source
from training.tiny.build import build
from training.tiny.emoji import EmojiData
from ziya.checkpoint import read_config
from ziya.model.qformer import QFormer

DATASETS = ("pictures-train", "pictures-check", "pictures-test", "pictures-unseen", "pairs-train", "words-train")
PICTURE_SOURCES = (
    Source("", "caption", field="caption", templates="name"),
    Source("", "classify", field="other", templates="other"),
    Source("", "classify", field="category", templates="category"),
    Source("", "classify", field="keywords", templates="keywords"),
    Source("", "vqa", field="describe", templates="plain"),
    Source("", "vqa", field="verify", templates="plain"),
    Source("", "dialogue", field="chat"),
    Source("", "dialogue", field="talk"),
)
PAIR_SOURCES = (Source("", "vqa", field="pair", templates="plain"), Source("", "dialogue", field="next"))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_packages(tmp_path_factory.mktemp("node_modules"))


def samples(folder: Path) -> Iterator[tuple[Record, list[bytes]]]:
    dataset = Dataset.open(str(folder))
    for item in range(len(dataset)):
        record = dataset.record(item)
        yield record, [dataset.image(item, number) for number in range(record.images)]


@pytest.fixture(scope="module")
def built(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build(folder, packages=packages, seed=3, pairs=12, shape=SMALL)
    return folder


def test_equal_seeds_give_equal_files_and_another_seed_others(packages: Path, built: Path, tmp_path: Path) -> None:
    build(tmp_path / "same", packages=packages, seed=3, pairs=12, shape=SMALL)
    build(tmp_path / "other", packages=packages, seed=4, pairs=12, shape=SMALL)
    first, same, other = (digests(folder) for folder in (built, tmp_path / "same", tmp_path / "other"))
    assert first == same
    assert first.keys() == other.keys()
    for part in (*DATASETS, "initial"):
        assert any(first[name] != other[name] for name in first if name.startswith(f"{part}/")), part


def test_nothing_held_out_is_trained_on(packages: Path, built: Path) -> None:
    split = EmojiData(packages).split()
    held = {picture.concept.unified for picture in split.check}
    assert held
    trained = [(picture.style, picture.concept) for picture in split.train]
    assert all(concept.seen for _, concept in trained)
    assert not held & {concept.unified for style, concept in trained if style in ("emojione", "emojione-v1")}
    assert held <= {concept.unified for style, concept in trained if style == "noto"}
    records = [record.fields for record, _ in samples(built / "pictures-train")]
    assert {(record["style"], record["group"]) for record in records} == {(s, c.unified) for s, c in trained}


def test_no_text_names_an_unseen_concept(packages: Path, built: Path) -> None:
    unseen = {concept.name_zh for concept in EmojiData(packages).concepts if not concept.seen}
    assert unseen
    for dataset in ("pictures-train", "pairs-train", "words-train"):
        for record, _ in samples(built / dataset):
            said = json.dumps(record.fields, ensure_ascii=False)
            assert not any(name in said for name in unseen)


def test_old_names_go_to_one_concept_each(packages: Path) -> None:
    pictures = EmojiData(packages).pictures("fxemoji")
    assert [picture.concept.name_en for picture in pictures[:4]] == ["thing 0", "thing 1", "thing 2", "thing 3"]
    # Every concept has the short name "old name", and its icon is the first one's that has no other.
    assert len(pictures) == len({picture.concept.unified for picture in pictures}) == 5


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    "dataset", ["pictures-train", "pictures-check", "pictures-test", "pictures-unseen", "pairs-train", "words-train"]
)
def test_every_record_answers_every_source(built: Path, dataset: str, language: str) -> None:
    sources = {"pairs-train": PAIR_SOURCES, "words-train": (Source("", "dialogue"),)}.get(dataset, PICTURE_SOURCES)
    opened = Dataset.open(str(built / dataset))
    for record, _ in samples(built / dataset):
        for source in sources:
            asked = Source(str(built), source.task, language, 1.0, source.field, source.templates)
            said = conversation(record, asked, opened.templates, random.Random(0))
            assert all(turn.text and "{" not in turn.text for turn in said.turns)


def test_pictures_keep_their_transparency_and_the_test_its_files(packages: Path, built: Path) -> None:
    for record, images in samples(built / "pictures-train"):
        image = Image.open(io.BytesIO(images[0]))
        assert (image.format, image.mode, image.size) == ("PNG", "RGBA", (64, 64))
        assert image.getchannel("A").getpixel((2, 2)) == (128 if record.fields["style"] == "noto" else 255)
    tested = [(record.fields, images[0]) for record, images in samples(built / "pictures-test")]
    unseen = [record.fields for record, _ in samples(built / "pictures-unseen")]
    assert len(tested) == COUNT - COUNT // 10
    assert len(unseen) == COUNT // 10
    assert all(fields["seen"] for fields, _ in tested)
    assert not any(fields["seen"] for fields in unseen)
    file = packages / "@lobehub/fluent-emoji-3d/assets/1f400.webp"
    assert tested[0][1] == file.read_bytes()


def test_pairs_show_two_concepts(built: Path) -> None:
    records = list(samples(built / "pairs-train"))
    assert len(records) == 12
    for record, images in records:
        assert len(images) == 2
        shown = [turn["text"]["en"] for turn in record.fields["next"]["turns"][1::2]]
        assert shown[0] != shown[1]


def test_the_first_checkpoint_retrieves_and_reads_both_languages(built: Path) -> None:
    assert read_config(built / "initial").retrieval
    qformer = QFormer.load(built / "initial")
    for text in ("thing 7", "东西7号"):
        ids = qformer.tokenize(text)
        assert (ids[0], ids[-1]) == (2, 3)
        assert 1 not in ids
    assert qformer.embed_text([qformer.tokenize("thing 7")]).shape == (1, 8)
