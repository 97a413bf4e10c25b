"""A stage of a TrainingJob onto its recipe: every field by its name, checked against the recipe's own types.

`train: {optimizer: {steps: 500, rate: 2e-4}, images: {cache: features}, losses: {lm: 1}}` replaces just those fields.
A mapping of a recipe (losses, learn, labels) is replaced as a whole, so that what a file says is all there is. What a
job says elsewhere (`data`, `checkpoint`, `parallelism`) cannot be said under `train` too.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic.alias_generators import to_camel

from training.complaints import did_you_mean
from training.errors import BadConfig
from training.limits import problems
from training.recipe import Recipe, Source
from training.stages import STAGES

if TYPE_CHECKING:
    from training.job import Stage

T = TypeVar("T")
# Where a job says what a recipe's field of this name holds.
_ELSEWHERE = {
    "stage": "the stage's name",
    "data": "the stage's data",
    "saving": "the stage's checkpoint",
    "compute.strategy": "the stage's parallelism.strategy",
}
_BAD = object()


def recipe_of(stage: Stage, path: str | None = None) -> Recipe:
    """The recipe that `stage` asks for. Raises BadConfig with a line for everything wrong, each with its path.

    `path` is the stage's place in its file, by default its name. A stage that does not train has checks alone.
    """
    wrong: list[str] = []
    recipe = applied(stage, path or stage.name, wrong)
    if wrong:
        raise BadConfig("\n".join(wrong))
    return recipe


def applied(stage: Stage, path: str, wrong: list[str]) -> Recipe:
    """The same, with what is wrong put into a list."""
    recipe, train = _base(stage, path, wrong), stage.train
    if stage.type not in STAGES:
        train = {name: value for name, value in train.items() if name == "checks"}
    before = len(wrong)
    wrong += _said_elsewhere(train, f"{path}.train")
    recipe = _Overriding(wrong).override(recipe, train, f"{path}.train")
    data = tuple(Source(**source.model_dump()) for source in stage.data)
    changes = {name: value for name, value in stage.checkpoint.model_dump().items() if value is not None}
    changes.pop("grace_seconds", None)
    if "every_seconds" in changes and "every_steps" not in changes:
        changes["every_steps"] = None
    recipe = replace(
        recipe,
        data=data or recipe.data,
        saving=replace(recipe.saving, **changes),
        compute=replace(recipe.compute, strategy=stage.parallelism.strategy or recipe.compute.strategy),
    )
    # What has a wrong type cannot be compared.
    if len(wrong) == before:
        wrong += [f"{path}.train.{line}" for line in problems(recipe, trains=stage.type in STAGES)]
    return recipe


def _base(stage: Stage, path: str, wrong: list[str]) -> Recipe:
    """What is changed: a named recipe."""
    if stage.type not in STAGES:
        return Recipe(stage.type, losses={}, learn={}, data=())
    name = stage.recipe or stage.type
    if name not in STAGES:
        wrong.append(
            f"{path}.recipe: there is no recipe {name!r}; recipes are {', '.join(STAGES)}{did_you_mean(name, STAGES)}"
        )
        name = stage.type
    return STAGES[name]()


def _said_elsewhere(train: Mapping[str, Any], path: str) -> Iterator[str]:
    for field, where in _ELSEWHERE.items():
        outer, _, inner = field.partition(".")
        given = train.get(outer)
        if outer in train and (not inner or (isinstance(given, Mapping) and inner in given)):
            yield f"{path}.{field}: is said by {where}"


def override(value: T, changes: Mapping[str, Any], path: str) -> T:
    """The dataclass `value` with the fields that `changes` names in camelCase.

    Raises BadConfig with a line for everything wrong, each with its path.
    """
    wrong: list[str] = []
    made = _Overriding(wrong).override(value, changes, path)
    if wrong:
        raise BadConfig("\n".join(wrong))
    return made


@dataclass(frozen=True)
class _Overriding:
    """Collects what is wrong; a wrong value leaves what was there before."""

    wrong: list[str]

    def override(self, value: T, changes: Mapping[str, Any], path: str) -> T:
        assert is_dataclass(value)
        hints, known = get_type_hints(type(value)), {to_camel(field.name): field.name for field in fields(value)}
        new: dict[str, Any] = {}
        for name, given in changes.items():
            if (field := known.get(name)) is None:
                self.wrong.append(f"{path}.{name}: there is no such field{did_you_mean(name, known)}")
                continue
            made = self._typed(hints[field], given, f"{path}.{name}", getattr(value, field))
            if made is not _BAD:
                new[field] = made
        return replace(value, **new)  # type: ignore[type-var]

    def _typed(self, hint: Any, given: Any, path: str, before: Any = None) -> Any:
        """`given` as what `hint` asks for, or _BAD. Of `before` a dataclass keeps the fields that are not given."""
        if get_origin(hint) in (Union, types.UnionType):
            if given is None:
                return None
            (hint,) = (one for one in get_args(hint) if one is not type(None))
        origin, inner = get_origin(hint), get_args(hint)
        if is_dataclass(hint) or (isinstance(origin, type) and issubclass(origin, Mapping)):
            if not isinstance(given, Mapping):
                return self._bad(path, f"must be a mapping, not {given!r}")
            return self._nested(hint, given, path, before) if is_dataclass(hint) else self._map(inner[1], given, path)
        if origin is tuple:
            return self._tuple(inner, given, path)
        return self._chosen(inner, given, path) if origin is Literal else self._plain(hint, given, path)

    def _chosen(self, known: Sequence[Any], given: Any, path: str) -> Any:
        if given in known:
            return given
        return self._bad(
            path, f"must be one of {', '.join(map(str, known))}, not {given!r}{did_you_mean(given, known)}"
        )

    def _map(self, hint: Any, given: Mapping[Any, Any], path: str) -> Any:
        made = {str(name): self._typed(hint, one, f"{path}.{name}") for name, one in given.items()}
        return _BAD if _BAD in made.values() else made

    def _nested(self, hint: Any, given: Mapping[str, Any], path: str, before: Any) -> Any:
        if isinstance(before, hint):
            return self.override(before, given, path)
        needed = [one.name for one in fields(hint) if one.default is MISSING and one.default_factory is MISSING]
        if missing := [to_camel(name) for name in needed if to_camel(name) not in given]:
            return self._bad(f"{path}.{missing[0]}", "is missing")
        return self.override(hint(**{name: given[to_camel(name)] for name in needed}), given, path)

    def _tuple(self, inner: Sequence[Any], given: Any, path: str) -> Any:
        if isinstance(given, str) or not isinstance(given, Sequence):
            return self._bad(path, f"must be a list, not {given!r}")
        if inner[-1] is not Ellipsis and len(given) != len(inner):
            return self._bad(path, f"must have {len(inner)} values, not {len(given)}")
        made = tuple(self._typed(inner[0], one, f"{path}[{place}]") for place, one in enumerate(given))
        return _BAD if _BAD in made else made

    def _plain(self, hint: Any, given: Any, path: str) -> Any:
        # Exact types, because True is an int to Python. A whole float is written as an int, and PyYAML by itself reads
        # 1e-4 as text.
        if hint is float and type(given) in (int, str):
            with suppress(ValueError, OverflowError):
                given = float(given)
        if type(given) is not hint:
            return self._bad(path, f"must be {hint.__name__}, not {given!r}")
        if hint is float and not math.isfinite(given):
            return self._bad(path, f"must be a finite number, not {given!r}")
        return given

    def _bad(self, path: str, reason: str) -> Any:
        self.wrong.append(f"{path}: {reason}")
        return _BAD
