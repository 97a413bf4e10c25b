"""config.json of a checkpoint folder: what its parts need to know of one another. No torch.

A checkpoint is `config.json` beside three parts that are loaded alone: `vision/`, `qformer/`, `llama/`.
The fingerprint of a part is a SHA-256 over the names and bytes of its files; it goes into every content
key, so that tokens of other weights are never mistaken for ours, and a part copied in from another
checkpoint is refused by name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

FORMAT = "ziya-visual"
VERSION = 1
PARTS = ("vision", "qformer", "llama")


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be used; the sentence names the file or field."""


@dataclass(frozen=True)
class PromptTemplate:
    """How turns become text; Ziya-LLaMA's own format by default (no bos, no system text)."""

    human: str = "<human>:"
    bot: str = "\n<bot>:"
    turn_end: str = "</s>"


@dataclass(frozen=True)
class GenerationDefaults:
    """Used where a request does not say; Ziya's model card sampled with top_p 0.1 at temperature 0.7."""

    max_tokens: int = 128
    temperature: float = 0.7
    top_p: float = 0.1
    top_k: int = 0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class CheckpointConfig:
    """The fields of config.json. Widths are in elements, `context_length` in positions.

    `itc_temperature` divides ITC's cosines: learnt with them, and what makes them comparable to ITM's log-odds.
    """

    name: str
    queries: int
    vision_width: int
    qformer_width: int
    llm_width: int
    context_length: int
    qformer_reads_instruction: bool = False
    retrieval: bool = False
    itc_temperature: float = 0.07
    prompt: PromptTemplate = field(default_factory=PromptTemplate)
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)
    fingerprints: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, ensure_ascii=False, indent=2) + "\n"


def read_config(folder: Path) -> CheckpointConfig:
    """Reads `folder/config.json`. Raises CheckpointError naming what is missing or wrong."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no config.json")
    try:
        raw = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} is not the config of a {FORMAT} checkpoint (convert it with `ziya convert`)")
    if raw.pop("version", None) != VERSION:
        raise CheckpointError(f"{path} has another format version; this program reads version {VERSION}")
    raw["prompt"] = _dataclass(PromptTemplate, raw.get("prompt", {}), path)
    raw["generation"] = _dataclass(GenerationDefaults, raw.get("generation", {}), path)
    config: CheckpointConfig = _dataclass(CheckpointConfig, raw, path)
    return config


def fingerprint(part: Path) -> str:
    """SHA-256 in hex over the sorted relative names, sizes and bytes of a part's files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in part.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(part).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def verify_part(folder: Path, part: str, config: CheckpointConfig) -> Path:
    """The folder of a part, after checking that it is there and is the one config.json was written for."""
    path = folder / part
    if not path.is_dir():
        raise CheckpointError(f"{folder} has no {part}/ part")
    expected = config.fingerprints.get(part)
    if expected is None:
        raise CheckpointError(f"{folder}/config.json has no fingerprint of {part}/")
    if fingerprint(path) != expected:
        raise CheckpointError(f"{path} is not the part that {folder}/config.json was written for (fingerprint differs)")
    return path


def _dataclass(kind: Any, raw: Any, path: Path) -> Any:
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: {kind.__name__} must be an object")
    types = get_type_hints(kind)
    if unknown := sorted(set(raw) - set(types)):
        raise CheckpointError(f"{path}: unknown field {', '.join(unknown)} in {kind.__name__}")
    for name, value in raw.items():
        wanted = get_origin(types[name]) or types[name]
        # Exact types, because True is an int to Python; JSON writes a whole float as an int.
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise CheckpointError(f"{path}: {name} must be {wanted.__name__}, not {type(value).__name__}")
    try:
        return kind(**raw)
    except TypeError as error:
        raise CheckpointError(f"{path}: {error}") from error
