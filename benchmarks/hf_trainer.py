"""The peer: transformers' BLIP-2 with its Trainer and peft, on the samples that a stage of a job would see.

    python -m benchmarks.hf_trainer JOB --stage NAME --model DIR --output DIR

Weights come from the same checkpoint (in Hugging Face's layout), samples in the same order with the same wordings, and
the optimizer is the same AdamW with the same groups and rates, so that the losses have to agree. What is the peer's
own: its model, its padding to the longest of a batch, its loss over all positions, its loop. It writes `steps.jsonl`
with the loss and the seconds of every step; a step's time includes waiting for its data.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Blip2ForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments

from training.assemble import Assembly, Told, assemble
from training.data.batch import Batch
from training.data.loader import plans
from training.data.record import Draw
from training.distributed import join
from training.job import load
from training.lora import adapter_state
from training.optimizer import rate
from training.progress import Progress
from training.recipe import Recipe
from training.run import run_of

IGNORED = -100
STEPS = "steps.jsonl"


class Samples(Dataset[dict[str, Tensor]]):
    """One sample after another, in the order of the recipe's own run."""

    def __init__(self, assembly: Assembly, draws: Sequence[Draw], image_token: int) -> None:
        self.collator, self.draws, self.image_token = assembly.collator, draws, image_token

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        batch: Batch = self.collator.batches(0, [[self.draws[number]]], 0, 1)[0][0]
        rows, pictures = batch.rows, batch.pictures
        assert rows is not None
        assert pictures is not None
        assert pictures.pixels_I3SS is not None
        held_T = rows.segment_RT[0] > 0
        ids_T = torch.where(rows.visual_RT[0] >= 0, self.image_token, rows.ids_RT[0])[held_T]
        labels_T = torch.where(rows.learnt_RT[0], rows.ids_RT[0], IGNORED)[held_T]
        return {"input_ids": ids_T, "labels": labels_T, "pixel_values": pictures.pixels_I3SS[0]}


def padded(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Right-padded to the longest sample of the batch."""
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    return {
        "input_ids": pad([one["input_ids"] for one in samples]),
        "attention_mask": pad([torch.ones_like(one["input_ids"]) for one in samples]),
        "labels": pad([one["labels"] for one in samples], padding_value=IGNORED),
        "pixel_values": torch.stack([one["pixel_values"] for one in samples]),
    }


class InOrder(Trainer):  # type: ignore[misc]
    """The Trainer without shuffling, which keeps its losses unrounded."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.losses: list[float] = []

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        assert self.train_dataset is not None
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, *arguments: Any, **named: Any) -> Any:
        loss = super().compute_loss(*arguments, **named)
        self.losses.append(float(loss))
        return loss


class Clock(TrainerCallback):  # type: ignore[misc]
    """The time from step to step."""

    def __init__(self) -> None:
        self.last, self.seconds = time.perf_counter(), list[float]()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now


def model(folder: Path, recipe: Recipe, ours: Assembly) -> Blip2ForConditionalGeneration:
    """The peer's model with what the recipe freezes frozen, and equal adapters if it has LoRA."""
    made = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    # Frozen parts are still, as they are in the recipe's run; it has no dropout either way.
    made.requires_grad_(False)
    for part, learns in ((made.qformer, "qformer"), (made.language_projection, "projection")):
        part.requires_grad_(recipe.learn.get(learns, 0.0) > 0)
    made.query_tokens.requires_grad_(recipe.learn.get("qformer", 0.0) > 0)
    if recipe.lora is not None:
        how = recipe.lora
        config = LoraConfig(
            r=how.rank, lora_alpha=int(how.alpha), lora_dropout=how.dropout, target_modules=list(how.targets)
        )
        inject_adapter_in_model(config, made.language_model)
        llama = ours.objectives.model.llama
        assert llama is not None
        begun = {
            name.removeprefix("base_model.model.").replace(".weight", ".default.weight"): tensor
            for name, tensor in adapter_state(llama).items()
        }
        missing = made.language_model.load_state_dict(begun, strict=False).unexpected_keys
        assert not missing, missing
    return made


def optimizer(made: nn.Module, recipe: Recipe) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """The recipe's AdamW: decay on matrices alone, LoRA and the rest each at its share of the rate."""
    how = recipe.optimizer
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, weight in made.named_parameters():
        if weight.requires_grad:
            part = "llama" if name.startswith("language_model") else "qformer"
            groups.setdefault((recipe.learn[part], weight.ndim >= 2), []).append(weight)
    adamw = torch.optim.AdamW(
        [
            {"params": weights, "lr": how.rate * share, "weight_decay": how.weight_decay if decay else 0.0}
            for (share, decay), weights in groups.items()
        ],
        betas=how.betas,
        eps=how.eps,
    )
    return adamw, torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: rate(how, step) / how.rate)


def draws(assembly: Assembly, recipe: Recipe, world: Any) -> Iterator[Draw]:
    ahead = plans(assembly.mixture, assembly.mixture.start(), recipe.optimizer, world, 0)
    for plan in islice(ahead, recipe.optimizer.steps):
        for micro in plan.micros:
            yield from micro


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--stage", required=True)
    parser.add_argument("--model", type=Path, required=True, help="the job's checkpoint in Hugging Face's layout")
    parser.add_argument("--output", type=Path, required=True)
    how = parser.parse_args()
    job = load(how.job)
    run = run_of(job, job.stage(how.stage), how.output, 1)
    recipe = run.recipe
    with join(600) as world:
        assembly = assemble(recipe, run.places, Told(world, Progress((), None)))
        made = model(how.model, recipe, assembly)
        image_token = made.config.image_token_id
        samples = Samples(assembly, list(draws(assembly, recipe, world)), image_token)
    folder = how.output / how.stage
    folder.mkdir(parents=True, exist_ok=True)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=recipe.optimizer.steps,
        per_device_train_batch_size=recipe.optimizer.batch,
        max_grad_norm=recipe.optimizer.clip,
        dataloader_num_workers=recipe.compute.workers,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )
    clock = Clock()
    trainer = InOrder(
        model=made,
        args=arguments,
        train_dataset=samples,
        data_collator=padded,
        optimizers=optimizer(made, recipe),
        callbacks=[clock],
    )
    trainer.train()
    lines = [{"loss": loss, "seconds": seconds} for loss, seconds in zip(trainer.losses, clock.seconds, strict=True)]
    (folder / STEPS).write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
