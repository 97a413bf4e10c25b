"""Values that a recipe's fields cannot have, whatever their type: found before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter

from pydantic.alias_generators import to_camel

from training.complaints import did_you_mean
from training.recipe import LANGUAGES, LOSSES, PARTS, TASKS, Recipe

# Least and most; None is no limit. A field that is None has no value to check.
_LIMITS: Mapping[str, tuple[float, float | None]] = {
    "optimizer.steps": (1, None),
    "optimizer.batch": (1, None),
    "optimizer.accumulate": (1, None),
    "optimizer.rate": (0, None),
    "optimizer.final_rate": (0, None),
    "optimizer.warmup_steps": (0, None),
    "optimizer.warmup_rate": (0, None),
    "optimizer.weight_decay": (0, None),
    "optimizer.eps": (0, None),
    "optimizer.clip": (0, None),
    "optimizer.ema": (0, 1),
    "text.row_positions": (1, None),
    "text.caption_tokens": (1, None),
    "text.caption_groups": (1, None),
    "text.instruction_tokens": (1, None),
    "text.answer_tokens": (1, None),
    "images.views": (1, None),
    "compute.workers": (0, None),
    "lora.rank": (1, None),
    "lora.dropout": (0, 1),
    "label_smoothing": (0, 1),
    "negative_memory": (0, None),
    "bad_share": (0, 1),
    "hang_seconds": (1, None),
}


def problems(recipe: Recipe, *, trains: bool) -> Iterator[str]:
    """A line for each wrong value: its path in the recipe in camelCase, then a sentence."""
    if trains:
        yield from _numbers(recipe)
        yield from _batches(recipe)
        yield from _sharing(recipe)
        yield from _names(recipe)
    yield from _checks(recipe)


def _numbers(recipe: Recipe) -> Iterator[str]:
    for path, (least, most) in _LIMITS.items():
        if path.startswith("lora.") and recipe.lora is None:
            continue
        value = attrgetter(path)(recipe)
        if value is None:
            continue
        if most is None and value < least:
            yield f"{_camel(path)}: must be at least {least}, not {value}"
        if most is not None and not least <= value <= most:
            yield f"{_camel(path)}: must be between {least} and {most}, not {value}"


def _batches(recipe: Recipe) -> Iterator[str]:
    how = recipe.optimizer
    if how.accumulate >= 1 and how.batch % how.accumulate:
        yield f"optimizer.batch is {how.batch}: it must be a multiple of accumulate ({how.accumulate})"


def _sharing(recipe: Recipe) -> Iterator[str]:
    if recipe.text.layout == "share" and (others := [name for name in recipe.losses if name != "lm"]):
        yield f"text.layout: share is for the loss lm alone, not {', '.join(others)}, which need a picture each"


def _names(recipe: Recipe) -> Iterator[str]:
    if not any(weight > 0 for weight in recipe.losses.values()):
        yield f"losses: a stage needs at least one of {', '.join(LOSSES)}, with a weight above 0"
    for name in recipe.losses:
        if name not in LOSSES:
            meant = did_you_mean(name, LOSSES)
            yield f"losses.{name}: there is no loss {name!r}; losses are {', '.join(LOSSES)}{meant}"
    for part in recipe.learn:
        if part.split(".")[0] not in PARTS:
            yield f"learn.{part}: there is no part {part!r}; parts are {', '.join(PARTS)}{did_you_mean(part, PARTS)}"
    for field in ("losses", "learn", "labels"):
        for name, share in getattr(recipe, field).items():
            if share < 0:
                yield f"{field}.{name}: must be at least 0, not {share}"
    if "classify" in recipe.losses and not recipe.labels:
        yield "labels: the loss classify needs at least one label"


def _checks(recipe: Recipe) -> Iterator[str]:
    for number, check in enumerate(recipe.checks):
        if check.kind == "labels" and check.field is None:
            yield f"checks[{number}].field: a check of labels names one"
        for field, value, known in (("task", check.task, TASKS), ("language", check.language, LANGUAGES)):
            if value not in known:
                meant = did_you_mean(value, known)
                yield f"checks[{number}].{field}: there is no {field} {value!r}, only {', '.join(known)}{meant}"
        for name in ("limit", "top_k"):
            value_or_none = getattr(check, name)
            if value_or_none is not None and value_or_none < 1:
                yield f"checks[{number}].{to_camel(name)}: must be at least 1, not {value_or_none}"


def _camel(path: str) -> str:
    return ".".join(map(to_camel, path.split(".")))
