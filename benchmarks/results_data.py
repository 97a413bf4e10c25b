"""The data that ziya-tiny's results are measured on, fetched by name and made into datasets of ours.

    fluent-seen    Fluent 3D (npm), a style that was never trained on: names, categories, yes or no, and four names to
    fluent-unseen  choose from, in both languages. The names of unseen things were in no training set
    stamps         Tux Paint's stamps (Debian's tuxpaint-stamps-default, GPL): pictures with a sentence in English and
                   in Chinese; without letters, coins and the like (`symbols/`)
    shapes         easy-vqa (PyPI, MIT): one question a record, its one answer written ten times; our own Chinese

Nothing of it is kept in the repository.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.shape_questions import chinese
from training.data.shards import Dataset
from training.data.writer import Sample, write_dataset
from training.tiny.emoji import Concept, EmojiData, Picture
from training.tiny.fetch import install
from training.tiny.records import LANGUAGES, TEMPLATES, Scene, names, picture_fields

SEED = 20231024
OPTIONS = 4
STAMPS, EASY = "tuxpaint-stamps-default", "easy-vqa==1.0"
INSTALLED = Path("/usr/share/tuxpaint/stamps")


def fluent(at: Path, packages: Path) -> tuple[Path, Path]:
    """The folders of seen and unseen things. Needs npm where the packages are not there."""
    data = EmojiData(install(packages))
    scene = Scene([concept for concept in data.concepts if concept.seen])
    folders = at / "fluent-seen", at / "fluent-unseen"
    for folder, seen in zip(folders, (True, False), strict=True):
        drawn = [picture for picture in data.test_pictures() if picture.concept.seen is seen]
        _write(folder, (_drawing(picture, scene, [one.concept for one in drawn]) for picture in drawn))
    return folders


def _drawing(picture: Picture, scene: Scene, others: Sequence[Concept]) -> Sample:
    # The same random numbers as the job's own pictures-test has.
    draw = random.Random(f"{SEED}/{picture.style}/{picture.concept.unified}")
    fields = picture_fields(picture, scene, draw)
    draw = random.Random(f"{SEED}/choice/{picture.concept.unified}")
    options = [picture.concept, *draw.sample([one for one in others if one is not picture.concept], OPTIONS - 1)]
    draw.shuffle(options)
    told = {language: [names(one)[language] for one in options] for language in LANGUAGES}
    question = {"en": "What is this?", "zh": "这是什么？"}
    fields["choice"] = {"question": question, "options": told, "answer": options.index(picture.concept)}
    return fields, [picture.read()]


def stamps(at: Path) -> Path:
    """Needs apt-get and dpkg-deb where the package is not installed."""
    source = INSTALLED if INSTALLED.is_dir() else _unpacked_stamps(at / "debian")
    _write(at / "stamps", _stamps(source))
    return at / "stamps"


def _unpacked_stamps(folder: Path) -> Path:
    found = folder / INSTALLED.relative_to("/")
    if not found.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", STAMPS], cwd=folder, check=True)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package.name, "."], cwd=folder, check=True)
    return found


def _stamps(source: Path) -> Iterator[Sample]:
    for picture in sorted(source.rglob("*.png")):
        text = picture.with_suffix(".txt")
        name = picture.relative_to(source)
        if name.parts[0] == "symbols" or not text.is_file():
            continue
        lines = text.read_text("utf-8", errors="replace").splitlines()
        chinese = [line.partition("=")[2].strip() for line in lines if line.startswith("zh_CN")]
        if lines and lines[0].strip() and chinese and chinese[0]:
            # Many stamps share a sentence ("A euro coin."): those are one thing to retrieval.
            caption = {"en": lines[0].strip(), "zh": chinese[0]}
            yield {"id": str(name), "caption": caption, "group": caption["en"]}, [picture.read_bytes()]


def shapes(at: Path) -> Path:
    """Needs pip's index where the wheel is not there."""
    wheels = at / "easy-vqa"
    if not list(wheels.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", EASY, "--dest", str(wheels)]
        subprocess.run(command, check=True)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        questions = json.loads(wheel.read("easy_vqa/data/test/questions.json"))
        _write(at / "shapes", _shapes(wheel, questions))
    return at / "shapes"


def _shapes(wheel: zipfile.ZipFile, questions: Sequence[tuple[str, str, int]]) -> Iterator[Sample]:
    for number, (question, answer, picture) in enumerate(questions):
        translated, answers = chinese(question, answer)
        people = [{"en": answer, "zh": one} for one in answers]
        fields = {"id": f"{number}", "vqa": {"question": {"en": question, "zh": translated}, "answer": people}}
        yield fields, [wheel.read(f"easy_vqa/data/test/images/{picture}.png")]


def _write(folder: Path, samples: Iterator[Sample]) -> Dataset:
    """Anew each time: it takes seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    return write_dataset(folder, samples, name=folder.name, templates=TEMPLATES)
