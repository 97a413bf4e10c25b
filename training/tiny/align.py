"""Step `align`: Q-Former, projection and LLaMA learn together to answer about what the frozen ViT sees.

There is no pretrained language model of this size, so the LLaMA learns to write here too: one loss on
the tokens of the answers, one on the concept that the queries carry. Every training step draws new views
of the pictures and new dialogues about them.
"""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.tiny import connect, dataset, vision
from training.tiny import tokenizer as tokenizers
from training.tiny.augment import augment
from training.tiny.dialogues import Dialogue, Scene, ask
from training.tiny.emoji import Concept, EmojiData, Picture
from training.tiny.model import Speaker, answer
from training.tiny.optimizer import MasterAdamW
from training.tiny.packing import Encoder, Piece, Rows, fill_row, pack
from training.tiny.progress import Progress, generator, load_state, save_state
from training.tiny.questions import CATEGORY, NAME
from training.tiny.recipe import Recipe
from ziya.checkpoint import PromptTemplate

Batch = tuple[Tensor, Rows, Tensor]


@dataclass(frozen=True)
class Parts:
    """What a training step works with."""

    recipe: Recipe
    pictures: dataset.Dataset
    recogniser: vision.Recogniser
    speaker: Speaker
    encoder: Encoder
    seen: tuple[Concept, ...]
    by_group: dict[str, list[Concept]]

    def batch(self, step: int) -> Batch:
        """Normalised images [B], rows [B], picture numbers [B]. A row's second picture is the next row's first."""
        how, seed = self.recipe.language, self.recipe.seed + 1
        main = dataset.batch_indices(len(self.pictures.pictures), how.train.batch, seed, step)
        draw, choose = generator(seed, step), random.Random(seed * 1_000_003 + step)
        other = dataset.partners(self.pictures.labels.concept, main, draw)
        pixels = self.pictures.pixels_NCHW
        images = augment(pixels[main], pixels[other], self.recipe.vision.image_px, self.recipe.augmentation, draw)
        shown = [self.pictures.pictures[number].concept for number in main.tolist()]
        rows = [self._row(concept, beside, choose) for concept, beside in zip(shown, _next(shown), strict=True)]
        return images, pack(rows, self.recipe.qformer.queries, how.row_positions), main

    def _row(self, shown: Concept, beside: Concept, choose: random.Random) -> list[Piece]:
        scene = Scene(shown, beside, self.seen, self.by_group)
        return fill_row(scene, self.encoder, self.recipe.language.row_positions, choose)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss on answers and the loss on concepts."""
        images, rows, main = batch
        with torch.no_grad():
            features = self.recogniser.vit(pixel_values=images.to(torch.bfloat16)).last_hidden_state
        shown = self.speaker.visual.query(features)
        scores, right = self.speaker(torch.cat([shown, shown.roll(-1, 0)], 1), rows)
        concept = self.speaker.concept_head(shown.mean(1)).float()
        smoothing = self.recipe.vision.label_smoothing
        target = self.pictures.labels.concept[main]
        return F.cross_entropy(scores, right), F.cross_entropy(concept, target, label_smoothing=smoothing)


def _next(shown: list[Concept]) -> list[Concept]:
    return shown[1:] + shown[:1]


def build_speaker(data: EmojiData, recipe: Recipe, concepts: int) -> Speaker:
    """A new LLaMA and projection behind the Q-Former that the step `connect` made."""
    torch.manual_seed(recipe.seed + 1)
    speaker = Speaker(recipe, concepts).to(torch.bfloat16)
    connector = connect.load(data, recipe)
    speaker.visual.load_state_dict(connector.visual.state_dict())
    speaker.concept_head.load_state_dict(connector.concept_head.state_dict())
    return speaker


def prepare(data: EmojiData, recipe: Recipe, pictures: list[Picture]) -> Parts:
    seen = tuple(concept for concept in data.concepts if concept.seen)
    by_group: dict[str, list[Concept]] = {}
    for concept in seen:
        by_group.setdefault(concept.group_en, []).append(concept)
    tokenizer = tokenizers.load(recipe.places.build)
    return Parts(
        recipe=recipe,
        pictures=dataset.load(data, pictures, recipe),
        recogniser=vision.load_encoder(data, recipe),
        speaker=build_speaker(data, recipe, len(seen)),
        encoder=Encoder(tokenizer, PromptTemplate(), recipe.qformer.queries),
        seen=seen,
        by_group=by_group,
    )


def train(data: EmojiData, recipe: Recipe) -> None:
    path = recipe.places.state("align")
    train_pictures, validation_pictures = dataset.split(data, recipe)
    parts = prepare(data, recipe, train_pictures)
    optimizer = MasterAdamW(parts.speaker, recipe.language.train, recipe.language.rates)
    if (state := load_state(path)) is not None:
        optimizer.restore(state)
    checks = vision.serving_images(validation_pictures, recipe.vision.image_px)

    def save() -> None:
        save_state(path, optimizer.state())
        optimizer.load_means()
        print(f"align validation: {score(parts, checks, validation_pictures)}", flush=True)
        optimizer.load_masters()

    _loop(parts, optimizer, save)


def _loop(parts: Parts, optimizer: MasterAdamW, save: Callable[[], None]) -> None:
    how, recipe = parts.recipe.language, parts.recipe
    progress = Progress("align", optimizer.step_number, how.train.steps, save, 2 * recipe.save_seconds)
    first, steps = optimizer.step_number, how.train.steps
    # Drawing dialogues is Python's work and computing is not: the next batch is drawn meanwhile.
    with ThreadPoolExecutor(1) as drawing:
        following = drawing.submit(parts.batch, first)
        for step in range(first, steps):
            batch, following = following.result(), drawing.submit(parts.batch, step + 1)
            answers, concepts = parts.losses(batch)
            torch.autograd.backward(answers + how.concept_weight * concepts)
            lr = optimizer.lr()
            optimizer.step()
            progress.tick(step + 1, how.train.batch, lr, answers=answers.item(), concepts=concepts.item())


@torch.no_grad()
def score(parts: Parts, images_MCHW: Tensor, pictures: list[Picture]) -> str:
    """Exact names and categories on held-out pictures."""
    speaker, encoder = parts.speaker, parts.encoder
    features = parts.recogniser.vit(pixel_values=images_MCHW.to(torch.bfloat16)).last_hidden_state
    visual = speaker.language_projection(speaker.visual.query(features))
    texts = []
    for language in ("en", "zh"):
        for label, wordings, truth in (("name", NAME, Concept.name), ("category", CATEGORY, Concept.group)):
            dialogue: Dialogue = ask(wordings[language][0], "")
            prompt = encoder.prompt(dialogue)[0][-1]
            said = answer(speaker.llama, prompt, visual, 24, encoder.end)
            right = [
                truth(p.concept, language) == encoder.tokenizer.decode(ids)
                for p, ids in zip(pictures, said, strict=True)
            ]
            texts.append(f"{label} {language} {sum(right) / len(right):.1%}")
    return "  ".join(texts)
