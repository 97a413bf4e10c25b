"""Step `connect`: the Q-Former alone learns to carry what the frozen ViT recognises.

The language model that reads the queries later is dear to train, the Q-Former is cheap: so it first sees many
more pictures than any language step could show it. Its queries' mean is held against the true concept and
against what the ViT's own heads said of the very same view.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.tiny import dataset, vision
from training.tiny.augment import augment
from training.tiny.emoji import EmojiData
from training.tiny.model import qformer_config
from training.tiny.optimizer import MasterAdamW
from training.tiny.progress import Progress, generator, load_state, save_state
from training.tiny.recipe import Recipe
from ziya.model.qformer import QFormerModule


class Connector(nn.Module):
    """The Q-Former and the head that is thrown away after training."""

    def __init__(self, recipe: Recipe, concepts: int) -> None:
        super().__init__()
        how = recipe.qformer
        self.visual = QFormerModule(qformer_config(how, recipe.vision.width), queries=how.queries)
        self.concept_head = nn.Linear(how.width, concepts)

    def forward(self, features_BND: Tensor) -> Tensor:
        """Scores [B, concepts]."""
        scores: Tensor = self.concept_head(self.visual.query(features_BND).mean(1)).float()
        return scores


def build(data: EmojiData, recipe: Recipe) -> Connector:
    torch.manual_seed(recipe.seed + 2)
    return Connector(recipe, len(dataset.class_names(data)[0])).to(torch.bfloat16)


def load(data: EmojiData, recipe: Recipe) -> Connector:
    """The trained module (running mean of its weights)."""
    path = recipe.places.state("connect")
    state = load_state(path)
    if state is None:
        raise FileNotFoundError(f"{path}: run the step `connect` first")
    model = build(data, recipe)
    optimizer = MasterAdamW(model, recipe.connect)
    optimizer.restore(state)
    optimizer.load_means()
    return model


@dataclass(frozen=True)
class Lesson:
    """The frozen ViT, the pictures, and the module that learns from both."""

    recipe: Recipe
    model: Connector
    recogniser: vision.Recogniser
    pictures: dataset.Dataset

    def losses(self, step: int) -> tuple[Tensor, Tensor]:
        """Cross-entropy to the true concept, and to what the ViT's own head says of the same view."""
        how, seed = self.recipe.connect, self.recipe.seed + 2
        labels, pixels, draw = self.pictures.labels, self.pictures.pixels_NCHW, generator(seed, step)
        chosen = dataset.batch_indices(len(pixels), how.batch, seed, step)
        other = dataset.partners(labels.concept, chosen, draw)
        images = augment(pixels[chosen], pixels[other], self.recipe.vision.image_px, self.recipe.augmentation, draw)
        with torch.no_grad():
            features = self.recogniser.vit(pixel_values=images.to(torch.bfloat16)).last_hidden_state
            seen = self.recogniser.heads[0](features.mean(1)).float().softmax(-1)
        scores = self.model(features)
        smoothing = self.recipe.vision.label_smoothing
        return F.cross_entropy(scores, labels.concept[chosen], label_smoothing=smoothing), F.cross_entropy(scores, seen)

    @torch.no_grad()
    def accuracy(self, images_MCHW: Tensor, truth_M: Tensor) -> float:
        features = self.recogniser.vit(pixel_values=images_MCHW.to(torch.bfloat16)).last_hidden_state
        return float((self.model(features).argmax(-1) == truth_M).float().mean())


def train(data: EmojiData, recipe: Recipe) -> None:
    path = recipe.places.state("connect")
    train_pictures, validation_pictures = dataset.split(data, recipe)
    pictures = dataset.load(data, train_pictures, recipe)
    lesson = Lesson(recipe, build(data, recipe), vision.load_encoder(data, recipe), pictures)
    optimizer = MasterAdamW(lesson.model, recipe.connect)
    if (state := load_state(path)) is not None:
        optimizer.restore(state)
    checks = vision.serving_images(validation_pictures, recipe.vision.image_px)
    truth = dataset.label([picture.concept for picture in validation_pictures], data).concept

    def save() -> None:
        save_state(path, optimizer.state())
        optimizer.load_means()
        print(f"connect validation: top-1 {lesson.accuracy(checks, truth):.1%}", flush=True)
        optimizer.load_masters()

    how = recipe.connect
    progress = Progress("connect", optimizer.step_number, how.steps, save, recipe.save_seconds)
    for step in range(optimizer.step_number, how.steps):
        concept, likeness = lesson.losses(step)
        torch.autograd.backward(concept + likeness)
        lr = optimizer.lr()
        optimizer.step()
        progress.tick(step + 1, how.batch, lr, concept=concept.item(), likeness=likeness.item())
