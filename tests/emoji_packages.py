"""A small fake of the npm packages of which ziya-tiny's data is made, in their own formats, and a builder that uses it.

`build` is what a TrainingJob's data stage calls where it names this module as its builder.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

from PIL import Image

from training.tiny import build as tiny
from training.tiny.emoji import GROUPS_ZH
from training.tiny.initial import Shape

GROUPS = tuple(GROUPS_ZH)
COUNT = 40
SMALL = Shape(16, 8, 16, 2, 1, 1, 2, caption_vocabulary=120, joint_width=8, llama_layers=1, llama_vocabulary=900)
SVG = '<path fill="#0a0" d="M0 0h8v16H0z"/>'


def build(folder: Path, *, packages: str, seed: int) -> list[str]:
    """As the tiny recipe's own, with a much smaller model."""
    return tiny.build(folder, packages=packages, seed=seed, pairs=12, shape=SMALL)


def write_packages(root: Path) -> Path:
    """Forty emoji in two categories; Firefox's set has the first four, EmojiOne's two sets the first twenty."""
    codes = [f"{0x1F400 + i:X}" for i in range(COUNT)]
    entries = [
        {
            "unified": code,
            "category": GROUPS[i % 2],
            "subcategory": "animal-mammal",
            "name": f"OLD NAME {i}",
            "short_names": ["old name"],
        }
        for i, code in enumerate(codes)
    ]
    put(root / "emoji-datasource/emoji.json", json.dumps(entries))
    for language, word in (("en", "thing {}"), ("zh", "东西{}号")):
        texts = {chr(int(code, 16)): word.format(i) for i, code in enumerate(codes)}
        annotations = {emoji: {"default": [f"k{text}", text], "tts": [text]} for emoji, text in texts.items()}
        for package, key in (("annotations", "annotations"), ("annotations-derived", "annotationsDerived")):
            content = {key: {"annotations": annotations if key == "annotations" else {}}}
            put(root / f"cldr-{package}-full/{key}/{language}/annotations.json", json.dumps(content))
    for code in codes:
        put(root / f"emoji-datasource-google/img/google/64/{code.lower()}.png", raster("PNG", (200, 0, 0, 128)))
        put(root / f"emoji-datasource-twitter/img/twitter/64/{code.lower()}.png", raster("PNG", (0, 0, 200, 255)))
        put(root / f"@lobehub/fluent-emoji-3d/assets/{code.lower()}.webp", raster("WEBP", (0, 200, 0, 255)))
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{SVG}</svg>'
        put(root / f"openmoji/color/svg/{code}.svg", svg)
    icons = {f"thing-{i}": {"body": SVG} for i in range(20)}
    for package in ("noto-v1", "emojione", "emojione-v1"):
        put(root / f"@iconify-json/{package}/icons.json", json.dumps({"icons": icons, "width": 16, "height": 16}))
    old = {f"oldname{i}": {"body": SVG} for i in range(4)} | {"oldname": {"body": SVG}}
    put(root / "@iconify-json/fxemoji/icons.json", json.dumps({"icons": old, "height": 16}))
    return root


def put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def raster(kind: str, colour: tuple[int, int, int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGBA", (64, 64), colour).save(stream, kind)
    return stream.getvalue()


def digests(folder: Path) -> dict[str, str]:
    """By the files' names, what is in them: equal for equal folders."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
