"""The concepts of the tiny checkpoint and the drawings that show them.

A *concept* is one base emoji with its short name in English and Chinese (CLDR) and its group. A
*picture* is one drawing of a concept in one art style. Five styles are for training; Fluent 3D is for
testing and nothing else, so a right answer on it means that the model recognises the thing, not the file.
One concept in ten, drawn by a fixed seed, is in no training set at all ("unseen").

Everything is read from a folder of npm packages (`node_modules`). No torch and no image library here:
a picture is handed out as the bytes of a PNG, WebP or SVG file.
"""

import json
import random
import re
import unicodedata
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

GROUPS_ZH = {
    "Smileys & Emotion": "笑脸与情感",
    "People & Body": "人物与身体",
    "Animals & Nature": "动物与自然",
    "Food & Drink": "食物与饮料",
    "Travel & Places": "旅行与地点",
    "Activities": "活动",
    "Objects": "物品",
    "Symbols": "符号",
    "Flags": "旗帜",
    "Component": "组件",
}
TRAIN_STYLES = ("noto", "twemoji", "openmoji", "noto-v1", "emojione", "emojione-v1", "fxemoji")
# EmojiOne 1 is the forerunner of EmojiOne 2: a concept that is held out in the one is not trained on in the other.
CHECK_STYLE, CHECK_RELATED = "emojione", "emojione-v1"
CHECK_CONCEPTS = 150
CHECK_SEED = 20231024
TEST_STYLE = "fluent-3d"
UNSEEN_SHARE = 0.1
SPLIT_SEED = 2310

_VARIATION = "\ufe0f"
_NOT_WORD = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Concept:
    """One base emoji. `seen` says whether any training set may contain it."""

    index: int
    emoji: str
    unified: str
    name_en: str
    name_zh: str
    keywords_en: tuple[str, ...]
    keywords_zh: tuple[str, ...]
    group_en: str
    group_zh: str
    subgroup: str
    seen: bool
    spellings: tuple[str, ...] = ()

    def name(self, language: str) -> str:
        return self.name_zh if language == "zh" else self.name_en

    def group(self, language: str) -> str:
        return self.group_zh if language == "zh" else self.group_en


@dataclass(frozen=True, slots=True)
class Picture:
    """One drawing of one concept: a file on disk, or SVG text taken out of an icon set."""

    concept: Concept
    style: str
    path: Path | None = None
    svg: str | None = None

    def read(self) -> bytes:
        if self.path is not None:
            return self.path.read_bytes()
        return (self.svg or "").encode()

    @property
    def is_svg(self) -> bool:
        return self.svg is not None or (self.path is not None and self.path.suffix == ".svg")


@dataclass(frozen=True)
class Split:
    """Drawings to train on, and known things drawn anew to make choices by."""

    train: tuple[Picture, ...]
    check: tuple[Picture, ...]


@dataclass(frozen=True)
class EmojiData:
    """The concepts and pictures found in one `node_modules` folder."""

    node_modules: Path

    @cached_property
    def concepts(self) -> tuple[Concept, ...]:
        names = {language: _annotations(self.node_modules, language) for language in ("en", "zh")}
        entries = _json(self.node_modules / "emoji-datasource" / "emoji.json")
        entries = sorted(entries, key=lambda entry: str(entry["unified"]))
        known = [entry for entry in entries if all(_plain(entry) in names[lang] for lang in names)]
        unseen = _unseen([str(entry["unified"]) for entry in known])
        return tuple(_concept(i, entry, names, unseen) for i, entry in enumerate(known))

    def pictures(self, style: str) -> tuple[Picture, ...]:
        """All drawings in `style`, in the order of the concepts."""
        return tuple(_PICTURES[style](self))

    def split(self) -> Split:
        """Every training style without what is held out; a style that is not installed is an error."""
        every = [picture for style in TRAIN_STYLES for picture in self.pictures(style)]
        seen = [picture for picture in every if picture.concept.seen]
        known = [picture.concept.index for picture in seen if picture.style == CHECK_STYLE]
        # Always some of the style are left to train on: only a fake of the packages has so few.
        count = min(CHECK_CONCEPTS, len(known) // 2)
        held = set(random.Random(CHECK_SEED).sample(known, count))
        related = (CHECK_STYLE, CHECK_RELATED)
        train = [p for p in seen if not (p.style in related and p.concept.index in held)]
        check = [p for p in seen if p.style == CHECK_STYLE and p.concept.index in held]
        return Split(tuple(train), tuple(check))

    def test_pictures(self) -> tuple[Picture, ...]:
        """Drawings of seen and unseen concepts in the style that is never trained on."""
        return self.pictures(TEST_STYLE)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _plain(entry: dict[str, Any]) -> str:
    """The emoji as CLDR keys it: without variation selectors."""
    return _characters(str(entry["unified"])).replace(_VARIATION, "")


def _characters(unified: str) -> str:
    return "".join(chr(int(code, 16)) for code in unified.split("-"))


def _annotations(node_modules: Path, language: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Emoji -> (short name, keywords), from CLDR's own and its derived annotations."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for package, key in (
        ("cldr-annotations-derived-full", "annotationsDerived"),
        ("cldr-annotations-full", "annotations"),
    ):
        path = node_modules / package / key / language / "annotations.json"
        for emoji, texts in _json(path)[key]["annotations"].items():
            if "tts" in texts:
                found[emoji.replace(_VARIATION, "")] = (texts["tts"][0], tuple(texts.get("default", ())))
    return found


def _unseen(unified: list[str]) -> frozenset[str]:
    count = round(len(unified) * UNSEEN_SHARE)
    return frozenset(random.Random(SPLIT_SEED).sample(unified, count))


def _concept(
    index: int,
    entry: dict[str, Any],
    names: dict[str, dict[str, tuple[str, tuple[str, ...]]]],
    unseen: frozenset[str],
) -> Concept:
    unified, plain = str(entry["unified"]), _plain(entry)
    (name_en, keywords_en), (name_zh, keywords_zh) = names["en"][plain], names["zh"][plain]
    return Concept(
        index=index,
        emoji=_characters(unified),
        unified=unified,
        name_en=name_en,
        name_zh=name_zh,
        keywords_en=keywords_en,
        keywords_zh=keywords_zh,
        group_en=str(entry["category"]),
        group_zh=GROUPS_ZH[str(entry["category"])],
        subgroup=str(entry["subcategory"]),
        seen=unified not in unseen,
        spellings=(str(entry.get("name") or ""), *map(str, entry.get("short_names", ()))),
    )


def _files(data: EmojiData, style: str, folder: str, suffix: str, upper: bool) -> Iterator[Picture]:
    """Sets that name their files by code points, with or without the variation selector."""
    directory = data.node_modules / folder
    present = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    for concept in data.concepts:
        full = concept.unified
        for code in (full, full.replace("-FE0F", ""), f"{full}-FE0F"):
            name = (code if upper else code.lower()) + suffix
            if name in present:
                yield Picture(concept, style, path=directory / name)
                break


def _icons(data: EmojiData, style: str, package: str) -> Iterator[Picture]:
    """Icon sets that name their drawings by the English short name."""
    icon_set = _json(data.node_modules / "@iconify-json" / package / "icons.json")
    icons, aliases = icon_set["icons"], icon_set.get("aliases", {})
    for concept in data.concepts:
        slugs = _slugs(concept.name_en)
        names = [name for slug in slugs for name in (slug, aliases.get(slug, {}).get("parent")) if name in icons]
        if names:
            yield Picture(concept, style, svg=_icon_svg(icon_set, names[0]))


def _run_together(data: EmojiData, style: str, package: str) -> Iterator[Picture]:
    """An icon set of old names without spaces: Unicode's own ("sakebottleandcup"), the short name, or a byname.

    An icon that two concepts could claim goes to the one whose Unicode name it is, and only to it.
    """
    icon_set = _json(data.node_modules / "@iconify-json" / package / "icons.json")
    owners: dict[str, Concept] = {}
    for level in range(3):
        owned = {concept.index for concept in owners.values()}
        for concept in data.concepts:
            name = _joined(_bynames(concept)[level], icon_set["icons"])
            if name is not None and concept.index not in owned:
                owners.setdefault(name, concept)
    for name, concept in sorted(owners.items(), key=lambda pair: pair[1].index):
        yield Picture(concept, style, svg=_icon_svg(icon_set, name))


def _bynames(concept: Concept) -> tuple[Sequence[str], ...]:
    return concept.spellings[:1], (concept.name_en,), concept.spellings[1:]


def _joined(spellings: Sequence[str], icons: Container[str]) -> str | None:
    joined = (_slug(spelling).replace("-", "") for spelling in spellings)
    return next((name for name in joined if name in icons), None)


def _icon_svg(icon_set: Mapping[str, Any], name: str) -> str:
    icon = icon_set["icons"][name]
    width, height = (icon.get(side, icon_set.get(side, 16)) for side in ("width", "height"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
    return f"{head}{icon['body']}</svg>"


def _slugs(name: str) -> list[str]:
    """What an icon set may call a drawing: flags were once named "flag for …", "&" may be spelled out."""
    spellings = [name, name.replace("&", "and"), name.replace("St.", "Saint")]
    if name.startswith("flag: "):
        country = name.removeprefix("flag: ")
        spellings += [f"flag for {place}" for place in (country, country.replace("&", "and"), f"flag {country}")]
    return [_slug(spelling) for spelling in spellings]


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    return _NOT_WORD.sub("-", plain).strip("-")


_PICTURES = {
    "noto": lambda data: _files(data, "noto", "emoji-datasource-google/img/google/64", ".png", False),
    "twemoji": lambda data: _files(data, "twemoji", "emoji-datasource-twitter/img/twitter/64", ".png", False),
    "openmoji": lambda data: _files(data, "openmoji", "openmoji/color/svg", ".svg", True),
    "noto-v1": lambda data: _icons(data, "noto-v1", "noto-v1"),
    "emojione": lambda data: _icons(data, "emojione", "emojione"),
    "emojione-v1": lambda data: _icons(data, "emojione-v1", "emojione-v1"),
    "fxemoji": lambda data: _run_together(data, "fxemoji", "fxemoji"),
    TEST_STYLE: lambda data: _files(data, TEST_STYLE, "@lobehub/fluent-emoji-3d/assets", ".webp", False),
}
