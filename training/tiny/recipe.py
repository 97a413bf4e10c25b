"""Every number of the tiny checkpoint's recipe in one place.

Sizes are chosen so that all steps together fit two CPU cores in about two hours and the result fits a
repository. What depends on the machine (folders) is in `Places`; what science decides is in `Recipe`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Places:
    """Where things lie. `build` may be deleted at any time; `checkpoint` is what is shipped."""

    build: Path = Path("build/tiny")
    checkpoint: Path = Path("checkpoints/ziya-tiny")
    packages: Path = Path("build/tiny/packages")

    def state(self, step: str) -> Path:
        return self.build / f"{step}.pt"


@dataclass(frozen=True)
class Optimizer:
    """AdamW with warm-up and cosine decay. `average` is the decay of the running mean of the weights."""

    steps: int
    batch: int
    peak_lr: float
    warmup: int
    weight_decay: float
    average: float = 0.999
    clip: float = 1.0
    final_lr_share: float = 0.01


@dataclass(frozen=True)
class Augmentation:
    """How far a drawing is changed before the encoder sees it. All draws are per picture."""

    shift: float = 0.10
    scale_down: float = 0.25
    scale_up: float = 0.12
    rotate_degrees: float = 12.0
    shear: float = 0.08
    white_background: float = 0.7
    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.45
    hue_degrees: float = 14.0
    grayscale: float = 0.05
    shading: float = 0.35
    noise: float = 0.03
    style_blend: float = 0.15
    erase: float = 0.15


@dataclass(frozen=True)
class Vision:
    """The ViT and its supervised stage: concept, group and subgroup of one picture."""

    picture_px: int = 64
    image_px: int = 48
    patch_px: int = 8
    width: int = 192
    layers: int = 4
    heads: int = 6
    label_smoothing: float = 0.1
    coarse_weight: float = 0.3
    validation_concepts: int = 150
    train: Optimizer = Optimizer(steps=6_800, batch=128, peak_lr=1.2e-3, warmup=400, weight_decay=0.05)


@dataclass(frozen=True)
class QFormer:
    """The Q-Former; it does not read the instruction."""

    queries: int = 8
    width: int = 192
    layers: int = 2
    heads: int = 6
    cross_attention_frequency: int = 1


@dataclass(frozen=True)
class Language:
    """The LLaMA, its tokenizer, and the step that trains it together with the Q-Former."""

    vocabulary: int = 4096
    width: int = 192
    intermediate: int = 512
    layers: int = 4
    heads: int = 6
    context: int = 1024
    row_positions: int = 128
    concept_weight: float = 0.5
    # The Q-Former has learnt its part before; it follows slowly.
    rates: Mapping[str, float] = field(default_factory=lambda: {"visual.": 0.2, "concept_head.": 0.2})
    train: Optimizer = Optimizer(steps=4_600, batch=32, peak_lr=1.5e-3, warmup=150, weight_decay=0.05, average=0.997)


@dataclass(frozen=True)
class Recipe:
    """All steps."""

    seed: int = 20231024
    threads: int = 2
    save_seconds: float = 60.0
    augmentation: Augmentation = Augmentation()
    vision: Vision = Vision()
    qformer: QFormer = QFormer()
    connect: Optimizer = Optimizer(steps=1_500, batch=128, peak_lr=1.5e-3, warmup=200, weight_decay=0.05)
    language: Language = Language()
    places: Places = field(default_factory=Places)
