"""Step `evaluate`: how well a checkpoint names pictures in the style it was never trained on.

The whole model answers greedily, in float32, from the files of the checkpoint folder: preprocessing, ViT,
Q-Former, projection, LLaMA. A name counts when it equals the CLDR short name, a category when it equals
the group's name in the language of the question.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from training.tiny import card
from training.tiny.dialogues import ask
from training.tiny.emoji import Concept, EmojiData, Picture
from training.tiny.model import answer
from training.tiny.packing import Encoder
from training.tiny.questions import CATEGORY, NAME, Wordings
from training.tiny.recipe import Recipe
from ziya.images import ImageLimits, decode
from ziya.model.llama import LlamaWeights, load_llama
from ziya.model.qformer import QFormer
from ziya.model.vision import VisionEncoder

BATCH = 128
MAX_TOKENS = 32
TASKS: dict[str, tuple[Wordings, Callable[[Concept, str], str]]] = {
    "name": (NAME, Concept.name),
    "category": (CATEGORY, Concept.group),
}


@dataclass(frozen=True, order=True)
class Row:
    """One cell group of the table: what was asked, in which language, about seen concepts or not."""

    task: str
    language: str
    seen: bool


@dataclass(frozen=True)
class Answer:
    row: Row
    picture: Picture
    said: str
    right: bool


class Model:
    """A checkpoint folder as one function from pictures and a question to answers."""

    def __init__(self, folder: Path) -> None:
        self.vision, self.qformer = VisionEncoder.load(folder), QFormer.load(folder)
        weights = load_llama(folder)
        self.llama = _language_model(folder, weights)
        self.weights = weights
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(weights.tokenizer))
        self.encoder = Encoder(self.tokenizer, weights.config.prompt, weights.config.queries)

    def visual(self, pictures: list[Picture]) -> Tensor:
        """Projected visual tokens [B, Q, LLM width]."""
        opened = [decode(picture.read(), ImageLimits()) for picture in pictures]
        pixels = np.stack([self.vision.preprocessing(image) for image in opened])
        tokens = torch.from_numpy(self.qformer(self.vision(pixels))).float()
        projected: Tensor = tokens @ self.weights.projection_weight.T + self.weights.projection_bias
        return projected

    def ask(self, visual_BQD: Tensor, question: str) -> list[str]:
        prompt = self.encoder.prompt(ask(question, ""))[0][-1]
        spoken = answer(self.llama, prompt, visual_BQD, MAX_TOKENS, self.encoder.end)
        return [self.tokenizer.decode(ids) for ids in spoken]


def _language_model(folder: Path, weights: LlamaWeights) -> LlamaForCausalLM:
    config = LlamaConfig.from_pretrained(folder / "llama")
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights.tensors)
    return model.eval()


def answers(model: Model, pictures: tuple[Picture, ...]) -> Iterator[Answer]:
    for start in range(0, len(pictures), BATCH):
        batch = list(pictures[start : start + BATCH])
        visual = model.visual(batch)
        for task, (wordings, truth) in TASKS.items():
            for language in ("en", "zh"):
                for picture, said in zip(batch, model.ask(visual, wordings[language][0]), strict=True):
                    row = Row(task, language, picture.concept.seen)
                    yield Answer(row, picture, said, said == truth(picture.concept, language))


def table(given: list[Answer]) -> str:
    """A Markdown table: seen concepts first, names before categories."""
    lines = ["| concepts | question | English | 中文 | pictures |", "| --- | --- | --- | --- | --- |"]
    for seen in (True, False):
        for task in ("name", "category"):
            shares, count = {}, 0
            for language in ("en", "zh"):
                right = [one.right for one in given if one.row == Row(task, language, seen)]
                shares[language], count = sum(right) / max(1, len(right)), len(right)
            label = "seen" if seen else "unseen"
            exact = "exact name" if task == "name" else "category"
            lines.append(f"| {label} | {exact} | {shares['en']:.1%} | {shares['zh']:.1%} | {count} |")
    return "\n".join(lines)


def evaluate(data: EmojiData, recipe: Recipe) -> None:
    folder = recipe.places.checkpoint
    given = list(answers(Model(folder), data.test_pictures()))
    result = table(given)
    print(result, flush=True)
    card.write(folder, result)
