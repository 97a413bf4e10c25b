"""From a recipe and a base checkpoint to everything that a loop drives.

The order matters: adapters go in before anything is frozen, freezing comes before the module is spread over processes,
and the optimizer takes the weights as they are after that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from training import lora
from training.data.captions import Captioner
from training.data.collate import Collator, Readers
from training.data.mixture import Mixture
from training.data.pixels import PixelSource
from training.data.rows import Encoder
from training.data.shards import Dataset
from training.distributed import World
from training.errors import BadConfig
from training.evaluate import Examiner, LabelHeads
from training.feature_build import FeatureBuild
from training.features import FeatureCache, FeatureKey
from training.learning import Group, learnable
from training.model import VisualLanguageModel, parts_of
from training.objectives import Objectives
from training.progress import Progress
from training.recipe import PARTS, Recipe
from ziya.checkpoint import CheckpointConfig, read_config
from ziya.instruction import load_instruction_tokenizer

ENCODE_BATCH = 128


@dataclass(frozen=True)
class Places:
    """Where a run reads and writes. A recipe's data without a scheme is looked up in `data`, unless absolute."""

    base: Path
    data: Path
    cache: Path

    def dataset(self, name: str) -> Dataset:
        """Raises BadData when there is none."""
        if "://" in name or Path(name).is_absolute():
            return Dataset.open(name, self.cache / "shards")
        return Dataset.open(str(self.data / name), self.cache / "shards")


@dataclass(frozen=True)
class Assembly:
    """What `assemble` makes: the module to train and what feeds and examines it."""

    recipe: Recipe
    config: CheckpointConfig
    objectives: Objectives
    groups: Sequence[Group]
    mixture: Mixture
    collator: Collator
    examiner: Examiner


@dataclass(frozen=True)
class Told:
    """This process, and whom it tells what it does."""

    world: World
    progress: Progress


def assemble(recipe: Recipe, places: Places, told: Told) -> Assembly:
    """Opens the data, loads the model, builds feature caches. Raises BadConfig, BadData, CheckpointError."""
    names = [source.data for source in recipe.data] + [check.data for check in recipe.checks]
    datasets = {name: places.dataset(name) for name in dict.fromkeys(names)}
    model = VisualLanguageModel.load(places.base, parts=_parts(recipe))
    caches = _caches(recipe, places, datasets, model, told)
    label_classes = _label_classes(recipe, datasets)
    if recipe.lora is not None and model.llama is not None:
        lora.attach(model.llama, recipe.lora, recipe.seed)
    objectives = Objectives(model, recipe, {name: len(classes) for name, classes in label_classes.items()})
    groups = learnable(objectives, recipe)
    objectives.to(told.world.device)
    text = _Text.of(recipe, places.base)
    sources = [datasets[source.data] for source in recipe.data]
    readers = Readers(
        datasets=sources,
        caches=[caches.get(source.data) for source in recipe.data],
        pixels=PixelSource(model.preprocessing, recipe.images, recipe.seed) if recipe.images.cache == "none" else None,
        encoder=text.encoder if "lm" in recipe.losses else None,
        captioner=text.captioner,
        reads_instruction=model.config.qformer_reads_instruction,
        label_classes=label_classes or None,
    )
    labels = LabelHeads(objectives.label_heads, label_classes) if label_classes else None
    examines = _examiner(recipe, model, datasets, told.world, text, labels=labels)
    examines.temperature = objectives.itc_temperature
    mixture = Mixture.over(recipe.data, sources, recipe.seed)
    return Assembly(recipe, model.config, objectives, groups, mixture, Collator(recipe, readers), examines)


def examiner(recipe: Recipe, places: Places, world: World) -> Examiner:
    """What examines the checkpoint itself, which nothing trains. Raises BadConfig, BadData, CheckpointError."""
    datasets = {name: places.dataset(name) for name in dict.fromkeys(check.data for check in recipe.checks)}
    model = VisualLanguageModel.load(places.base, parts=_parts(recipe)).to(world.device)
    return _examiner(recipe, model, datasets, world, _Text.of(recipe, places.base))


@dataclass(frozen=True)
class _Text:
    """The tokenizers, where the recipe or its checks need them."""

    tokenizer: Tokenizer | None
    encoder: Encoder | None
    captioner: Captioner | None

    @classmethod
    def of(cls, recipe: Recipe, base: Path) -> _Text:
        config = read_config(base)
        asks = any(check.kind == "answers" for check in recipe.checks)
        tokenizer = encoder = captioner = None
        if asks or "lm" in recipe.losses:
            tokenizer = Tokenizer.from_file(str(base / "llama" / "tokenizer.json"))
            encoder = Encoder(tokenizer, config.prompt, config.queries, recipe.text)
        if config.retrieval or config.qformer_reads_instruction:
            captioner = Captioner(load_instruction_tokenizer(base), recipe.text.caption_tokens)
        return cls(tokenizer, encoder, captioner)


def _examiner(
    recipe: Recipe,
    model: VisualLanguageModel,
    datasets: Mapping[str, Dataset],
    world: World,
    text: _Text,
    *,
    labels: LabelHeads | None = None,
) -> Examiner:
    return Examiner(
        model,
        recipe.checks,
        datasets,
        world,
        tokenizer=text.tokenizer,
        encoder=text.encoder,
        captioner=text.captioner,
        labels=labels,
    )


def _parts(recipe: Recipe) -> frozenset[str]:
    """What the losses run through, what makes the caches, and what the checks ask."""
    parts = set(parts_of(recipe)) if recipe.losses else set()
    if recipe.images.cache != "none":
        parts |= {"vision"} if recipe.images.cache == "features" else {"vision", "qformer"}
    for check in recipe.checks:
        parts |= {"retrieval": {"vision", "qformer"}, "labels": {"vision"}, "answers": set(PARTS)}[check.kind]
    return frozenset(parts)


def _label_classes(recipe: Recipe, datasets: Mapping[str, Dataset]) -> dict[str, dict[str, int]]:
    """Numbers of the class names of each label, over all sources together."""
    if "classify" not in recipe.losses:
        return {}
    classes: dict[str, dict[str, int]] = {}
    for label in recipe.labels:
        names = sorted({name for source in recipe.data for name in datasets[source.data].labels.get(label, ())})
        if not names:
            raise BadConfig(f"no source of stage {recipe.stage!r} has records with the label {label!r}")
        classes[label] = {name: number for number, name in enumerate(names)}
    return classes


def _caches(
    recipe: Recipe, places: Places, datasets: Mapping[str, Dataset], model: VisualLanguageModel, told: Told
) -> dict[str, FeatureCache]:
    """Features or tokens of every source that has pictures, made now where they are not there yet."""
    world = told.world
    kind = recipe.images.cache
    if kind == "none":
        return {}
    _refuse_learning_encoders(recipe, model.config)
    prints, caches = read_config(places.base).fingerprints, {}
    encoder = _Encode(model.to(world.device).eval(), kind == "tokens", world.device)
    pixels = PixelSource(model.preprocessing, recipe.images, recipe.seed)
    for name in dict.fromkeys(source.data for source in recipe.data):
        dataset = datasets[name]
        if not dataset.image_count:
            continue
        key = FeatureKey(
            dataset=dataset.digest,
            vision=prints["vision"],
            qformer=prints["qformer"] if kind == "tokens" else None,
            pixels=pixels.description(),
            views=recipe.images.views,
        )
        folder = places.cache / key.name
        if world.rank == 0:
            told.progress.note(
                f"{kind} of {dataset.name}: {dataset.image_count} pictures x {key.views} views in {folder}"
            )
        FeatureBuild(folder, key, dataset, pixels, encoder, batch=ENCODE_BATCH).run(rank=world.rank, world=world.size)
        world.barrier()
        caches[name] = FeatureCache.open(folder, key)
    return caches


def _refuse_learning_encoders(recipe: Recipe, config: CheckpointConfig) -> None:
    learning = {part.split(".")[0] for part, share in recipe.learn.items() if share > 0}
    if "vision" in learning:
        raise BadConfig(f"images.cache is {recipe.images.cache!r}, but the ViT (or its last norm) learns: freeze it")
    if recipe.images.cache == "tokens" and "qformer" in learning:
        raise BadConfig("images.cache is 'tokens', but the Q-Former learns: freeze it, or cache features")
    if recipe.images.cache == "tokens" and config.qformer_reads_instruction:
        raise BadConfig("images.cache is 'tokens', but this Q-Former reads the instruction: cache features")


@dataclass(frozen=True)
class _Encode:
    """The frozen ViT, and for tokens the Q-Former after it."""

    model: VisualLanguageModel
    tokens: bool
    device: torch.device

    @torch.no_grad()
    def __call__(self, pixels_I3SS: torch.Tensor) -> torch.Tensor:
        features_IND = self.model.features(pixels_I3SS.to(self.device))
        return (self.model.tokens(features_IND) if self.tokens else features_IND).float().cpu()
