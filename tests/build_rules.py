"""How the tests' language model answers a builder: translations by a dictionary or by rule, instructions from captions.

Everything it says can be checked: the Chinese of a text is `chinese` of it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.build_inputs import CAPTIONS, jpeg
from tests.llm_rules import answer as other
from tests.llm_rules import back, is_chinese, last_text, translate

EXAMPLES = Path(__file__).parents[1] / "checkpoints" / "ziya-tiny" / "examples" / "examples.json"


@cache
def names() -> Mapping[str, str]:
    """Chinese names by English ones, of the pictures that come with the checkpoint: CLDR's, so true."""
    return {one["name_en"]: one["name_zh"] for one in json.loads(EXAMPLES.read_text("utf-8"))}


def chinese(text: str) -> str:
    """A known name in its own Chinese, all else by rule."""
    return names().get(text) or translate(text)


def answer(messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any] | None) -> Any:
    """Fits the schemas of training/build/prompts; anything else as the server answers by itself."""
    asked = (schema or {}).get("properties", {})
    if "texts" in asked:
        said = [line if isinstance(line, str) else line["text"] for line in json.loads(last_text(messages))]
        return {"texts": [back(text) if is_chinese(text) else chinese(text) for text in said]}
    if "items" in asked:
        return {"items": [_item(asked["items"]["items"], last_text(messages))]}
    return other(messages, schema)


def seeing(messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any] | None) -> Any:
    """Speaks of the picture itself: which of `tests.build_inputs.jpeg` it is, and nothing where it sees none."""
    if "items" not in (schema or {}).get("properties", {}):
        return answer(messages, schema)
    content = messages[-1]["content"]
    parts = content if isinstance(content, list) else []
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    seen = [base64.b64decode(url.partition("base64,")[2]) for url in urls]
    words = [CAPTIONS[number] for picture in seen for number in range(3) if jpeg(number) == picture]
    return {"items": [_item(schema["properties"]["items"]["items"], "".join(f"- {one}" for one in words))]}


def _item(schema: Mapping[str, Any], words: str) -> Any:
    caption = next((line[2:] for line in words.splitlines() if line.startswith("- ")), "nothing")
    said = [("What can be seen in this picture?", f"One can see {caption}."), ("Is that all?", f"Yes, only {caption}.")]
    if "rounds" in schema["properties"]:
        return {"rounds": [_both(*one, schema["properties"]["rounds"]["items"]) for one in said]}
    return _both(*said[0], schema)


def _both(instruction: str, response: str, schema: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    spoken = {"en": str, "zh": chinese}
    return {
        language: {"instruction": spoken[language](instruction), "response": spoken[language](response)}
        for language in schema["properties"]
    }
