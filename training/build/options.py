"""What a build is told: the input, what to make of it, whom to ask, and what the gates refuse. One frozen value.

The same names stand under `options` of a TrainingJob's data stage and, with hyphens, on the command line.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from training.build.layouts.recognise import Kind
from training.complaints import complaints
from training.errors import BadConfig
from training.llm.endpoint import Endpoint, Price
from training.part import VARIABLE, Part

Language = Literal["en", "zh"]
Translated = Literal["caption", "vqa", "dialogue"]
Generated = Literal["description", "question", "reasoning", "dialogue"]
TRANSLATED: tuple[Translated, ...] = ("caption", "vqa", "dialogue")
GENERATED: tuple[Generated, ...] = ("description", "question", "reasoning", "dialogue")
LANGUAGES: tuple[Language, ...] = ("en", "zh")
# How hard the server is pressed and what may be spent changes nothing of what is made.
_NOT_OF_THE_RESULT = {
    "input",
    "images",
    "url",
    "api_key_env",
    "concurrency",
    "requests_per_minute",
    "tokens_per_minute",
    "timeout",
    "budget",
    "prompt_price",
    "answer_price",
    "ledger",
    "expect",
    "demonstrations",
}


class GateOptions(Part):
    """`agreement` is a checkpoint whose ITC score of picture and text must be at least `least_agreement`.

    `back_translation` is the share of translated rows that are translated back and compared.
    """

    agreement: str | None = None
    least_agreement: float = Field(default=0.0, ge=-1, le=1)
    back_translation: float = Field(default=0.01, ge=0, le=1)
    near_duplicates: bool = True


class BuildOptions(Part):
    """`input` is read as `layout` (default: what it is seen to be); texts that do not say so are in `language`.

    `translate` and `generate` say what is made, `items` how many of each generated kind a picture gets, `shots` how
    many demonstrations stand before it. Prices are dollars for a million tokens, and needed for a `budget`. `licence`
    counts for rows that bring none of their own. More than `bad_share` of bad rows stop the build before they are paid
    for, more than `unanswered_share` of questions without an answer before anything is written (one that is written
    then depends on the weather). `expect` is the digest that the input must have.
    """

    input: str = Field(min_length=1)
    layout: Kind | None = None
    images: str | None = None
    language: Language = "en"
    licence: str | None = Field(default=None, min_length=1)
    limit: int | None = Field(default=None, ge=1)
    translate: tuple[Translated, ...] = TRANSLATED
    generate: tuple[Generated, ...] = ()
    languages: tuple[Language, ...] = Field(default=LANGUAGES, min_length=1)
    items: int = Field(default=1, ge=1, le=10)
    shots: int = Field(default=2, ge=0, le=8)
    demonstrations: str | None = None
    show_images: bool = False
    url: str = Field(min_length=1)
    model: str = Field(min_length=1)
    revision: str = ""
    api_key_env: Annotated[str, Field(pattern=VARIABLE)] | None = None
    concurrency: int = Field(default=16, ge=1, le=4096)
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    timeout: float = Field(default=120.0, gt=0)
    prompt_price: float | None = Field(default=None, ge=0)
    answer_price: float | None = Field(default=None, ge=0)
    budget: float | None = Field(default=None, gt=0)
    seed: int = 0
    bad_share: float = Field(default=0.01, ge=0, le=1)
    unanswered_share: float = Field(default=0.0, ge=0, le=1)
    shard_samples: int = Field(default=1000, ge=1)
    gates: GateOptions = GateOptions()
    ledger: str | None = None
    expect: str | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if not self.translate and not self.generate:
            raise ValueError("there is nothing to make: neither translate nor generate names anything")
        if self.budget is not None and (self.prompt_price is None or self.answer_price is None):
            raise ValueError("a budget needs prices: set promptPrice and answerPrice, in dollars for a million tokens")
        return self

    @property
    def endpoint(self) -> Endpoint:
        """With the key from the environment. Raises BadConfig when the variable is not set."""
        key = None
        if self.api_key_env is not None:
            key = os.environ.get(self.api_key_env)
            if not key:
                raise BadConfig(f"the environment variable {self.api_key_env}, which apiKeyEnv names, is not set")
        return Endpoint(
            self.url,
            self.model,
            key,
            concurrency=self.concurrency,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            timeout=self.timeout,
            price=Price(self.prompt_price or 0.0, self.answer_price or 0.0),
            revision=self.revision,
        )

    @property
    def demonstration_path(self) -> Path | None:
        return Path(self.demonstrations) if self.demonstrations else None

    @property
    def of_the_result(self) -> dict[str, Any]:
        """What decides what is made, for the manifest: not where the input lies, nor who is asked how fast."""
        said: dict[str, Any] = self.model_dump(mode="json", exclude=_NOT_OF_THE_RESULT)
        agreement = self.gates.agreement
        return {**said, "gates": {**said["gates"], "agreement": Path(agreement).name if agreement else None}}

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.of_the_result, sort_keys=True).encode()).hexdigest()


def read_options(given: Mapping[str, Any], where: str) -> BuildOptions:
    """Raises BadConfig with a line for everything that is wrong."""
    try:
        return BuildOptions.model_validate(dict(given))
    except ValidationError as error:
        lines = "\n  ".join(complaints(error, BuildOptions))
        raise BadConfig(f"{where} cannot be built:\n  {lines}") from error
