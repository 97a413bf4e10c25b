"""From a dialogue to the pieces a model reads: text pieces with an image between each two. No torch.

Visual tokens stand at the start of the turn that shows the picture, before `<human>:` (BLIP-2 and its
kin put them first; Ziya's own position is not public, so this is our choice). A prompt is therefore
n + 1 text pieces with n images between them, which needs no placeholder text that a user could forge.
Training and serving both come through here, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tokenizers import Tokenizer

from ziya.checkpoint import PromptTemplate

ImageT = TypeVar("ImageT")


@dataclass(frozen=True)
class Turn(Generic[ImageT]):
    """One turn: who speaks ("user" or "assistant"), the text, and the images it shows, in order."""

    role: str
    text: str
    images: tuple[ImageT, ...] = ()


@dataclass(frozen=True)
class Prompt(Generic[ImageT]):
    """`texts[i]`, then `images[i]`, then `texts[i + 1]` …: always one more text than images."""

    texts: tuple[str, ...]
    images: tuple[ImageT, ...] = field(default=())

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.images) + 1:
            raise ValueError(f"{len(self.images)} images need {len(self.images) + 1} texts, not {len(self.texts)}")


def render(turns: Sequence[Turn[ImageT]], template: PromptTemplate) -> Prompt[ImageT]:
    """The prompt of a dialogue whose last turn is the user's; ends where the model is to answer.

    Markers of the template inside a user's own text are defused: `<bot>` is written with a full-width
    bracket, so that no text can open a turn. Raises ValueError when the turns do not alternate.
    """
    if not turns or turns[-1].role != "user":
        raise ValueError("the last turn must be the user's")
    texts, images, current = [], list[ImageT](), ""
    for number, turn in enumerate(turns):
        if turn.role != ("user", "assistant")[number % 2]:
            raise ValueError("turns must alternate between user and assistant, beginning with the user")
        if turn.role == "assistant":
            current += _defuse(turn.text, template) + template.turn_end
            continue
        for image in turn.images:
            texts.append(current)
            images.append(image)
            current = ""
        current += template.human + _defuse(turn.text.strip(), template) + template.bot
    return Prompt((*texts, current), tuple(images))


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text piece, without bos or eos."""
    return [list(e.ids) for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _defuse(text: str, template: PromptTemplate) -> str:
    markers = {part.strip(": \n") for part in (template.human, template.bot, template.turn_end)}
    for marker in sorted(markers | {"<s>", "</s>", "<unk>"} - {""}):
        if marker.startswith("<"):
            text = text.replace(marker, "＜" + marker[1:])
    return text
