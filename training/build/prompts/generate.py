"""How instructions and responses are asked for: by a picture's words, and what was made of them in examples.

In-context learning as BMMIC and LLaVA use it: the model never sees our rules applied, it sees a few good examples in
the very form that it is to answer in.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from training.build.demonstrations import Demonstration
from training.build.options import Generated
from training.data.writer import image_suffix
from training.llm.question import Question

INSTRUCTION = """\
You write training data for an assistant that looks at pictures and talks with people in {languages}.
{seen}
Write {count} for this picture: {kind}
- Speak as somebody who sees the picture. Never mention captions, coordinates, or that you were told about it.
- Say nothing that {known} does not support. Ask only what can be answered from it with certainty.
- {language_rule}
Answer with one JSON object in the form of the examples and nothing else."""
SEEN = "You see the picture, and what is known about it in words."
TOLD = (
    "You cannot see the picture; you are told what is known about it: captions, objects with their places, text in it."
)
KINDS: Mapping[str, str] = {
    "description": "an instruction to describe it in detail, and a description of a few sentences that covers what is "
    "there, where it is, and what is going on.",
    "question": "a question about what is in it, how many, where, of what colour, or what somebody is doing, and a "
    "short, complete answer.",
    "reasoning": "a question that needs a conclusion (why, what next, what for, how one can tell), and an answer that "
    "gives the grounds which the picture shows and then the conclusion.",
    "dialogue": "a conversation of two to four rounds between a user and the assistant, each round building on the one "
    "before.",
}
NAMES = {"en": "English", "zh": "Chinese"}
PARALLEL = (
    'Give every text in English ("en") and in Chinese ("zh"): the same content, each as a native speaker says it.'
)
ONE = "Write in {language} only."
_TOKENS = {"description": 400, "question": 120, "reasoning": 350, "dialogue": 600}
_MOST_ROUNDS = 6
_MIME = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "gif": "image/gif", "bmp": "image/bmp"}


def question(
    kind: Generated,
    words: str,
    images: Sequence[bytes],
    shots: Sequence[Demonstration],
    *,
    languages: Sequence[str],
    items: int,
    seed: int,
) -> Question:
    """`words` describe the picture; `images` are shown when there are any. The answer is read by `items_of`."""
    messages: list[Mapping[str, Any]] = [
        {"role": "system", "content": _instruction(kind, bool(images), languages, items)}
    ]
    for shot in shots:
        messages.append({"role": "user", "content": shot.words})
        messages.append({"role": "assistant", "content": json.dumps(shot.answer(languages), ensure_ascii=False)})
    content: Any = words
    if images:
        shown = [{"type": "image_url", "image_url": {"url": _url(image)}} for image in images]
        content = [*shown, {"type": "text", "text": words or "Nothing is known about it in words."}]
    messages.append({"role": "user", "content": content})
    tokens = 64 + items * len(languages) * _TOKENS[kind]
    return Question(tuple(messages), schema(kind, languages, items), max_tokens=tokens, temperature=0.7, seed=seed)


def schema(kind: Generated, languages: Sequence[str], items: int) -> dict[str, Any]:
    """{"items": [{"en": {"instruction", "response"}, "zh": …}]}; an item of a dialogue is {"rounds": [{"en": …}]}."""
    text = {"type": "string", "minLength": 1}
    said = _object({"instruction": text, "response": text})
    one = _object(dict.fromkeys(languages, said))
    if kind == "dialogue":
        one = _object({"rounds": {"type": "array", "items": one, "minItems": 1, "maxItems": _MOST_ROUNDS}})
    return _object({"items": {"type": "array", "items": one, "minItems": 1, "maxItems": items}})


def items_of(kind: Generated, value: Any) -> list[dict[str, list[tuple[str, str]]]]:
    """Of an answer that fits the schema: for each item, by language, its (instruction, response) rounds."""
    found = []
    for item in value["items"]:
        rounds = item["rounds"] if kind == "dialogue" else [item]
        by_language: dict[str, list[tuple[str, str]]] = {}
        for one in rounds:
            for language, said in one.items():
                pair = said["instruction"].strip(), said["response"].strip()
                by_language.setdefault(language, []).append(pair)
        found.append(by_language)
    return found


def _instruction(kind: str, seen: bool, languages: Sequence[str], items: int) -> str:
    both = len(languages) > 1
    return INSTRUCTION.format(
        languages=" and ".join(NAMES[language] for language in languages),
        seen=SEEN if seen else TOLD,
        count="one item" if items == 1 else f"up to {items} items, no two alike,",
        kind=KINDS[kind],
        known="the picture" if seen else "what you are told",
        language_rule=PARALLEL if both else ONE.format(language=NAMES[languages[0]]),
    )


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    names = list(properties)
    return {"type": "object", "properties": dict(properties), "required": names, "additionalProperties": False}


def _url(image: bytes) -> str:
    mime = _MIME[image_suffix(image) or "jpg"]
    return f"data:{mime};base64,{base64.b64encode(image).decode()}"
