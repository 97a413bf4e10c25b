"""English and Chinese texts that people translated, to hold the gates against. Nothing here is ever trained on."""

from __future__ import annotations

import gettext
import json
from pathlib import Path

Pairs = list[tuple[str, str]]
_CHINESE = "zh_CN.utf8="


def examples(file: Path) -> Pairs:
    """Names of a checkpoint's examples."""
    return [(one["name_en"], one["name_zh"]) for one in json.loads(file.read_text("utf-8"))]


def cldr_names(packages: Path) -> Pairs:
    """CLDR's short names of emoji, from a node_modules folder (Unicode-3.0). Raises OSError when it lacks them."""
    by_language = []
    for language in ("en", "zh"):
        file = packages / "cldr-annotations-full/annotations" / language / "annotations.json"
        entries = json.loads(file.read_text("utf-8"))["annotations"]["annotations"]
        by_language.append({emoji: entry["tts"][0] for emoji, entry in entries.items() if "tts" in entry})
    english, chinese = by_language
    return [(name, chinese[emoji]) for emoji, name in english.items() if emoji in chinese]


def stamp_captions(folder: Path) -> Pairs:
    """The first line of each .txt file and its line in Chinese; equal pairs once (GPL-2, read where it is)."""
    found: dict[tuple[str, str], None] = {}
    for file in sorted(folder.rglob("*.txt")):
        lines = file.read_text("utf-8", "replace").splitlines()
        chinese = next((line.removeprefix(_CHINESE).strip() for line in lines if line.startswith(_CHINESE)), "")
        if lines and lines[0].strip() and chinese:
            found[lines[0].strip(), chinese] = None
    return list(found)


def messages(folder: Path) -> Pairs:
    """Messages of one line without placeholders, of all *.mo files; equal pairs once."""
    found: dict[tuple[str, str], None] = {}
    for file in sorted(folder.glob("*.mo")):
        with file.open("rb") as content:
            try:
                catalogue = gettext.GNUTranslations(content)
            except (OSError, UnicodeDecodeError, IndexError, ValueError):
                continue
        for key in catalogue._catalog:  # type: ignore[attr-defined]
            english = str(key[0] if isinstance(key, tuple) else key).rsplit("\x04", 1)[-1].strip()
            chinese = str(catalogue._catalog[key]).strip()  # type: ignore[attr-defined]
            if len(english) > 2 and chinese and "%" not in english + chinese and "\n" not in english:
                found[english, chinese] = None
    return list(found)
