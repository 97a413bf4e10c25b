"""Step `vision`: the encoder learns to recognise concepts, supervised.

BLIP-2 starts from a pretrained image encoder. There is none here, so this step makes one: a ViT with three
throwaway heads (concept, group, subgroup) on the mean of its tokens. What is kept is the ViT.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Blip2VisionConfig, Blip2VisionModel

from training.tiny import dataset
from training.tiny.augment import augment, normalise
from training.tiny.emoji import EmojiData, Picture
from training.tiny.optimizer import MasterAdamW
from training.tiny.pictures import open_rgba, over_white
from training.tiny.progress import Progress, generator, load_state, save_state
from training.tiny.recipe import Recipe, Vision


def vision_config(how: Vision) -> Blip2VisionConfig:
    # The library's default initializer_range of 1e-10 suits only weights that are loaded.
    return Blip2VisionConfig(
        hidden_size=how.width,
        intermediate_size=4 * how.width,
        num_hidden_layers=how.layers,
        num_attention_heads=how.heads,
        image_size=how.image_px,
        patch_size=how.patch_px,
        hidden_act="gelu",
        initializer_range=0.02,
        attn_implementation="eager",
    )


class Recogniser(nn.Module):
    """The ViT and the heads of this step."""

    def __init__(self, how: Vision, concepts: int, groups: int, subgroups: int) -> None:
        super().__init__()
        self.vit = Blip2VisionModel(vision_config(how))
        self.heads = nn.ModuleList([nn.Linear(how.width, classes) for classes in (concepts, groups, subgroups)])

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        tokens_BND = self.vit(pixel_values=images_BCHW).last_hidden_state
        pooled_BD = tokens_BND.mean(1)
        return [head(pooled_BD).float() for head in self.heads]


def build(data: EmojiData, recipe: Recipe) -> Recogniser:
    concepts, groups, subgroups = dataset.class_names(data)
    torch.manual_seed(recipe.seed)
    return Recogniser(recipe.vision, len(concepts), len(groups), len(subgroups)).to(torch.bfloat16)


def serving_images(pictures: list[Picture], px: int) -> Tensor:
    """float[B, 3, px, px] as serving makes it: over white, bicubic, normalised."""
    images = [over_white(open_rgba(picture, 4 * px)).resize((px, px), 3) for picture in pictures]
    stacked = torch.stack([torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in images])
    return normalise(stacked.view(-1, px, px, 3).permute(0, 3, 1, 2).float() / 255)


@torch.no_grad()
def accuracy(model: Recogniser, images_BCHW: Tensor, labels: dataset.Labels) -> str:
    """Share of pictures whose concept (first guess, first five) and group are right."""
    model.eval()
    batches = [model(images.to(torch.bfloat16)) for images in torch.split(images_BCHW, 256)]
    concept, group = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    top5 = concept.topk(5).indices == labels.concept[:, None]
    right = (top5[:, 0], top5.any(1), group.argmax(1) == labels.group)
    model.train()
    return "top-1 {:.1%}  top-5 {:.1%}  group {:.1%}".format(*(share.float().mean().item() for share in right))


def losses(outputs: list[Tensor], labels: dataset.Labels, chosen_B: Tensor, how: Vision) -> tuple[Tensor, Tensor]:
    concept = F.cross_entropy(outputs[0], labels.concept[chosen_B], label_smoothing=how.label_smoothing)
    group = F.cross_entropy(outputs[1], labels.group[chosen_B])
    subgroup = F.cross_entropy(outputs[2], labels.subgroup[chosen_B])
    return concept, how.coarse_weight * (group + subgroup)


def train(data: EmojiData, recipe: Recipe) -> None:
    how, path = recipe.vision, recipe.places.state("vision")
    train_pictures, validation_pictures = dataset.split(data, recipe)
    print(f"vision: {len(train_pictures)} pictures, decoding", flush=True)
    pictures = dataset.load(data, train_pictures, recipe)
    checks = serving_images(validation_pictures, how.image_px)
    check_labels = dataset.label([picture.concept for picture in validation_pictures], data)
    model = build(data, recipe)
    optimizer = MasterAdamW(model, how.train)
    if (state := load_state(path)) is not None:
        optimizer.restore(state)

    def validate() -> None:
        optimizer.load_means()
        print(f"vision validation: {accuracy(model, checks, check_labels)}", flush=True)
        optimizer.load_masters()

    def save() -> None:
        save_state(path, optimizer.state())
        validate()

    _loop(model, optimizer, pictures, recipe, save)


def _loop(
    model: Recogniser,
    optimizer: MasterAdamW,
    pictures: dataset.Dataset,
    recipe: Recipe,
    save: Callable[[], None],
) -> None:
    how, steps = recipe.vision, recipe.vision.train.steps
    progress = Progress("vision", optimizer.step_number, steps, save, recipe.save_seconds)
    labels, pixels = pictures.labels, pictures.pixels_NCHW
    for step in range(optimizer.step_number, steps):
        draw = generator(recipe.seed, step)
        chosen = dataset.batch_indices(len(pixels), how.train.batch, recipe.seed, step)
        other = dataset.partners(labels.concept, chosen, draw)
        images = augment(pixels[chosen], pixels[other], how.image_px, recipe.augmentation, draw)
        concept, coarse = losses(model(images.to(torch.bfloat16)), labels, chosen, how)
        torch.autograd.backward(concept + coarse)
        lr = optimizer.lr()
        optimizer.step()
        progress.tick(step + 1, how.train.batch, lr, concept=concept.item(), coarse=coarse.item())


def load_encoder(data: EmojiData, recipe: Recipe) -> Recogniser:
    """The trained recogniser (running mean of its weights), in float32 precision of the masters."""
    state = load_state(recipe.places.state("vision"))
    if state is None:
        raise FileNotFoundError(f"{recipe.places.state('vision')}: run the step `vision` first")
    model = build(data, recipe)
    optimizer = MasterAdamW(model, recipe.vision.train)
    optimizer.restore(state)
    optimizer.load_means()
    return model.eval()
