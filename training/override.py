"""A stage of a TrainingJob onto its recipe: every field by its name, checked against the recipe's own types.

`train: {optimizer: {steps: 500, rate: 2e-4}, images: {cache: features}, losses: {lm: 1}}` replaces just those fields.
A mapping of a recipe (losses, learn, labels) is replaced as a whole, so that what a file says is all there is.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic.alias_generators import to_camel

from training.errors import BadConfig
from training.job import TRAINS, Stage
from training.recipe import LOSSES, PARTS, Recipe, Source
from training.stages import STAGES

T = TypeVar("T")


def recipe_of(stage: Stage) -> Recipe:
    """The recipe that `stage` asks for. Raises BadConfig with the path of what is wrong."""
    name = stage.recipe or stage.type
    if name not in STAGES:
        raise BadConfig(f"{stage.name}: there is no recipe {name!r}; recipes are {', '.join(STAGES)}")
    recipe = override(STAGES[name](), stage.train, f"{stage.name}.train")
    data = tuple(Source(**source.model_dump()) for source in stage.data)
    changes = {name: value for name, value in stage.checkpoint.model_dump().items() if value is not None}
    changes.pop("grace_seconds", None)
    if "every_seconds" in changes and "every_steps" not in changes:
        changes["every_steps"] = None
    strategy = stage.parallelism.strategy or recipe.compute.strategy
    recipe = replace(
        recipe,
        data=data or recipe.data,
        saving=replace(recipe.saving, **changes),
        compute=replace(recipe.compute, strategy=strategy),
    )
    if stage.type in TRAINS:
        _check(recipe, stage.name)
    return recipe


def override(value: T, changes: Mapping[str, Any], path: str) -> T:
    """The dataclass `value` with the fields that `changes` names in camelCase or snake_case."""
    assert is_dataclass(value)
    hints, known = get_type_hints(type(value)), {}
    for field in fields(value):
        known[field.name] = known[to_camel(field.name)] = field.name
    new: dict[str, Any] = {}
    for name, given in changes.items():
        if name not in known:
            close = get_close_matches(name, known, n=1)
            raise BadConfig(f"{path}.{name}: there is no such field" + (f"; did you mean {close[0]}?" if close else ""))
        new[known[name]] = _typed(hints[known[name]], given, f"{path}.{name}", getattr(value, known[name]))
    return replace(value, **new)  # type: ignore[type-var]


def _typed(hint: Any, given: Any, path: str, before: Any) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _optional(inner, given, path, before)
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(given, Mapping):
            raise BadConfig(f"{path}: must be a mapping, not {given!r}")
        return override(before if isinstance(before, hint) else _fresh(hint, given, path), given, path)
    if origin is Literal:
        if given not in inner:
            raise BadConfig(f"{path}: must be one of {', '.join(map(str, inner))}, not {given!r}")
        return given
    if origin is tuple:
        return _tuple(inner, given, path)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(given, Mapping):
            raise BadConfig(f"{path}: must be a mapping, not {given!r}")
        return {str(name): _typed(inner[1], one, f"{path}.{name}", None) for name, one in given.items()}
    return _plain(hint, given, path)


def _optional(inner: Sequence[Any], given: Any, path: str, before: Any) -> Any:
    if given is None:
        return None
    (hint,) = (one for one in inner if one is not type(None))
    return _typed(hint, given, path, before)


def _fresh(hint: type, given: Mapping[str, Any], path: str) -> Any:
    """A new value for `override` to change: a class whose first field must be given (Source, Check) gets it here."""
    required = [one.name for one in fields(hint) if one.name == "data"]
    if missing := [name for name in required if name not in given]:
        raise BadConfig(f"{path}.{missing[0]}: is missing")
    return hint(**{name: given[name] for name in required})


def _tuple(inner: Sequence[Any], given: Any, path: str) -> tuple[Any, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise BadConfig(f"{path}: must be a list, not {given!r}")
    if inner[-1] is not Ellipsis and len(given) != len(inner):
        raise BadConfig(f"{path}: must have {len(inner)} values, not {len(given)}")
    return tuple(_typed(inner[0], one, f"{path}[{place}]", None) for place, one in enumerate(given))


def _plain(hint: Any, given: Any, path: str) -> Any:
    # Exact types, because True is an int to Python; YAML writes a whole float as an int, and 1e-4 as a string.
    if hint is float and type(given) is int:
        return float(given)
    if hint is float and isinstance(given, str):
        try:
            return float(given)
        except ValueError:
            pass
    if type(given) is not hint:
        raise BadConfig(f"{path}: must be {hint.__name__}, not {given!r}")
    return given


def _check(recipe: Recipe, name: str) -> None:
    if not recipe.losses:
        raise BadConfig(f"{name}.train.losses: a stage needs at least one of {', '.join(LOSSES)}")
    if unknown := sorted(set(recipe.losses) - set(LOSSES)):
        raise BadConfig(f"{name}.train.losses: there is no loss {unknown[0]!r}; losses are {', '.join(LOSSES)}")
    for part in recipe.learn:
        if part.split(".")[0] not in PARTS:
            raise BadConfig(f"{name}.train.learn: there is no part {part!r}; parts are {', '.join(PARTS)}")
    how = recipe.optimizer
    for field, least in (("steps", 1), ("batch", 1), ("accumulate", 1), ("warmup_steps", 0)):
        if getattr(how, field) < least:
            raise BadConfig(f"{name}.train.optimizer.{field}: must be at least {least}, not {getattr(how, field)}")
