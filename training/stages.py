"""The stages of Ziya-Visual as data: what each one trains, on which losses, how fast.

A run is a named function; a TrainingJob's stage names one (by default the one of its type) and overrides fields.
Numbers are BLIP-2's and InstructBLIP's where those are public; Ziya-Visual's own hyperparameters are not
(arXiv 2310.08166 gives stages, not values). Behind each number stands where it is from:

    [B2]   BLIP-2, arXiv 2301.12597, appendix        [LAVIS]  salesforce/LAVIS, its yaml files
    [X]    X-InstructBLIP's public configuration for Vicuna-13B, the nearest to InstructBLIP that is public
    [ours] our choice
"""

from __future__ import annotations

from collections.abc import Callable

from training.recipe import Compute, Images, Lora, Optimizer, Recipe, Saving, Text

Stage = Callable[[], Recipe]


def vision() -> Recipe:
    """A ViT from nothing, by naming what pictures show; for models without a pretrained one. All [ours]."""
    return Recipe(
        stage="vision",
        losses={"classify": 1.0},
        learn={"vision": 1.0},
        data=(),
        labels={"concept": 1.0},
        optimizer=Optimizer(steps=50_000, batch=1024, rate=1e-3, final_rate=1e-5, warmup_steps=2000, ema=0.9998),
        images=Images(augment="crop"),
    )


def pretrain() -> Recipe:
    """BLIP-2's first stage: the Q-Former learns to see, by contrast, matching and captioning. The ViT is frozen.

    [B2] 250k steps of 1680, AdamW 0.9/0.98, decay 0.05, peak 1e-4 after 2k steps of warm-up, equal losses;
    [LAVIS] cosine down to 1e-5, warm-up from 1e-6, label smoothing 0.1, 32 caption tokens, the ViT's last norm learns.
    """
    return Recipe(
        stage="pretrain",
        losses={"itc": 1.0, "itm": 1.0, "itg": 1.0},
        learn={"qformer": 1.0, "vision.post_layernorm": 1.0},
        data=(),
        optimizer=Optimizer(steps=250_000, batch=1680, rate=1e-4, final_rate=1e-5, warmup_steps=2000),
        images=Images(augment="crop"),
    )


def align() -> Recipe:
    """BLIP-2's second stage: the LLM learns nothing, the Q-Former learns to speak to it through the projection.

    [B2] 80k steps of 1920 (OPT), peak 1e-4 down to 5e-5, the rest as in `pretrain`; [LAVIS] warm-up 2000 steps.
    """
    return Recipe(
        stage="align",
        losses={"lm": 1.0},
        learn={"qformer": 1.0, "projection": 1.0},
        data=(),
        optimizer=Optimizer(steps=80_000, batch=1920, accumulate=4, rate=1e-4, final_rate=5e-5, warmup_steps=2000),
        text=Text(answer_tokens=64),
        images=Images(augment="crop"),
    )


def instruct() -> Recipe:
    """Bilingual multi-task instruction tuning; its result is called *Base*.

    [X] peak 1e-5 down to 0 after 1000 steps from 1e-8, decay 0.05, cosine; [LAVIS] instructions of 128 tokens,
    answers of 256. 60k steps of 64 are InstructBLIP's as we remember its table, not read again. LoRA on the LLM is
    what sets Ziya-Visual apart; its rank, targets and rate are not public: [ours].
    """
    return Recipe(
        stage="instruct",
        losses={"lm": 1.0},
        learn={"qformer": 1.0, "projection": 1.0, "llama": 10.0},
        data=(),
        lora=Lora(rank=16, alpha=32.0, dropout=0.05),
        optimizer=Optimizer(
            steps=60_000, batch=64, rate=1e-5, final_rate=0.0, warmup_steps=1000, warmup_rate=1e-8, betas=(0.9, 0.999)
        ),
        text=Text(row_positions=2048),
        compute=Compute(checkpoint_activations=True),
    )


def chat() -> Recipe:
    """Dialogues, loss on the answers only; its result is called *Chat*. LoRA and the projection learn. All [ours]."""
    return Recipe(
        stage="chat",
        losses={"lm": 1.0},
        learn={"projection": 1.0, "llama": 10.0},
        data=(),
        lora=Lora(rank=16, alpha=32.0, dropout=0.05),
        optimizer=Optimizer(steps=10_000, batch=64, rate=1e-5, final_rate=0.0, warmup_steps=300, betas=(0.9, 0.999)),
        text=Text(row_positions=2048, answer_tokens=512),
        compute=Compute(checkpoint_activations=True),
        saving=Saving(every_steps=500),
    )


STAGES: dict[str, Stage] = {stage.__name__: stage for stage in (vision, pretrain, align, instruct, chat)}
