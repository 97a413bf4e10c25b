"""What a stage does, as one frozen value: what learns and how fast, from which data, by which losses.

A recipe holds what science decides. `training/stages.py` has the named ones, a TrainingJob's stage overrides
their fields by name (`training/job.py`), and everything else in this package reads them. Where things lie
(folders, attempt number, processes) is not part of a recipe: the same recipe gives the same weights anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

LANGUAGES = ("en", "zh")
TASKS = ("caption", "vqa", "choice", "classify", "ocr", "dialogue")
LOSSES = ("classify", "itc", "itm", "itg", "lm")
# Parts of the model that can learn; a longer name is a part of a part ("vision.post_layernorm").
PARTS = ("vision", "qformer", "projection", "llama")
# Layouts of several samples a row.
PACKED = ("pack", "share")


@dataclass(frozen=True)
class Source:
    """A share of the data: records of one dataset, asked one kind of question in one language.

    `data` is a dataset's folder or URL (where its index.json lies). `field` is the record's field to read
    (default: the task's own, see training/data/tasks.py), `templates` the set of wordings (default: the task's).
    `ratio` is relative to the other sources of the recipe. `samples_each` is how many samples of a record come one
    after another when it is its turn, each with another text of its lists; sources of one dataset that have more than
    one meet at the same records, if their ratios are as their `samples_each`.
    """

    data: str
    task: str = "caption"
    language: str = "en"
    ratio: float = 1.0
    field: str | None = None
    templates: str | None = None
    samples_each: int = 1

    @property
    def name(self) -> str:
        """How this source is called in logs: `caption/zh`, or with its field `caption.name/zh`."""
        return f"{self.task}{'.' + self.field if self.field else ''}/{self.language}"


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on the LLaMA (arXiv 2106.09685): `alpha / rank` scales the update."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Optimizer:
    """Warm-up, cosine decay, clipping. `batch` is in samples over all processes, in `accumulate` equal micro-batches.

    `ema` is the decay of a running mean of the weights, which is then what is evaluated and exported.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    steps: int = 1000
    batch: int = 64
    accumulate: int = 1
    rate: float = 1e-4
    final_rate: float = 1e-5
    warmup_steps: int = 100
    warmup_rate: float = 1e-6
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    clip: float = 1.0
    ema: float | None = None


@dataclass(frozen=True)
class Text:
    """How text becomes rows. Lengths are in tokens, `row_positions` in positions (text and visual tokens).

    pad: one sample a row, padded to the longest of the micro-batch; bucket: the same, samples of like length
    together; pack: several samples in a row of `row_positions`, none sees another; share: the same, and samples of one
    picture have it, and the text that they begin with alike, once for all (`Source.samples_each` brings them together).

    Captions for the Q-Former are padded to the longest of their micro-batch; with `caption_groups` above 1 those of
    like length go through it together, in so many groups, each padded to its own longest.
    """

    layout: Literal["pad", "bucket", "pack", "share"] = "pack"
    row_positions: int = 512
    caption_tokens: int = 32
    caption_groups: int = 1
    instruction_tokens: int = 128
    answer_tokens: int = 256


@dataclass(frozen=True)
class Images:
    """What is done to a picture before the encoder, and what is computed once and kept.

    augment: none, crop (random resized crop and mirror, BLIP-2's), drawing (no mirror; for art, see augment.py).
    cache: features (the ViT's output; the ViT must be frozen) or tokens (the Q-Former's; it must be frozen too
    and not read the instruction). `views` is how many augmented views of each picture are kept.
    """

    augment: Literal["none", "crop", "drawing"] = "none"
    cache: Literal["none", "features", "tokens"] = "none"
    views: int = 1


@dataclass(frozen=True)
class Compute:
    """How the arithmetic is done. `workers` are loader processes, 0 means in the training process itself."""

    precision: Literal["float32", "bfloat16"] = "bfloat16"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    compile: bool = False
    checkpoint_activations: bool = False
    workers: int = 2


@dataclass(frozen=True)
class Saving:
    """When a checkpoint is made (whichever comes first) and how many are kept."""

    every_steps: int | None = 1000
    every_seconds: float | None = None
    keep: int = 2


@dataclass(frozen=True)
class Check:
    """One evaluation on held-out data: `retrieval` (ITC, then ITM on the top k), exact `answers` to a task, or the
    `labels` that a stage with the loss `classify` learns (`field` names one, by its own heads)."""

    data: str
    kind: Literal["retrieval", "answers", "labels"] = "answers"
    task: str = "caption"
    language: str = "en"
    field: str | None = None
    templates: str | None = None
    limit: int | None = None
    top_k: int = 128

    @property
    def name(self) -> str:
        """How this check is called in logs and reports: `retrieval/zh`, `caption.name/en`, `labels.concept`."""
        if self.kind == "labels":
            return f"labels.{self.field}"
        what = "retrieval" if self.kind == "retrieval" else self.task
        return f"{what}{'.' + self.field if self.field else ''}/{self.language}"


@dataclass(frozen=True)
class Recipe:
    """One stage. `losses` gives weights of LOSSES; `learn` gives parts and their share of the rate; the rest is frozen.

    `labels` gives the record's labels that the `classify` loss learns, and their weights. `negative_memory` is how many
    micro-batches before this one ITM's hard negatives may come from, too (BLIP-2: none). A run stops when more than
    `bad_share` of its samples are bad, or when a step takes longer than `hang_seconds`.
    """

    stage: str
    losses: Mapping[str, float]
    learn: Mapping[str, float]
    data: tuple[Source, ...]
    lora: Lora | None = None
    optimizer: Optimizer = Optimizer()
    text: Text = Text()
    images: Images = Images()
    compute: Compute = Compute()
    saving: Saving = Saving()
    checks: tuple[Check, ...] = ()
    label_smoothing: float = 0.1
    negative_memory: int = 0
    bad_share: float = 0.01
    hang_seconds: float = 600.0
    seed: int = 42
    labels: Mapping[str, float] = field(default_factory=dict)
