"""What the gateway tells its page: all that the page knows when it starts, and no secret among it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from ziya.checkpoint import CheckpointConfig


@dataclass(frozen=True)
class PageFacts:
    """`folder` is the page's own, with its socket and its visitors' images; `api` is the gateway's address.

    Sizes are in bytes; `timeout` is in seconds. A visitor's image is kept for `keep_seconds` after it was sent; while
    all of them hold more than `max_kept_bytes`, none is taken.
    """

    model: str
    keys_needed: bool
    max_image_bytes: int
    timeout: float
    context: int
    max_tokens: int
    temperature: float
    top_p: float
    examples: str = ""
    keep_seconds: int = 3600
    max_kept_bytes: int = 512 << 20
    folder: str = ""
    api: str = ""

    @property
    def socket(self) -> Path:
        return Path(self.folder) / "page.sock"

    @property
    def files(self) -> Path:
        """Where gradio keeps uploads."""
        return Path(self.folder) / "files"

    @classmethod
    def of(cls, checkpoint: Path, config: CheckpointConfig, **others: object) -> Self:
        """With the checkpoint's defaults and, where it brings some, its examples."""
        own = config.generation
        examples = checkpoint / "examples"
        given: dict[str, object] = {
            "context": config.context_length,
            "max_tokens": own.max_tokens,
            "temperature": own.temperature,
            "top_p": own.top_p,
            "examples": str(examples.resolve()) if (examples / "examples.json").is_file() else "",
        }
        return cls(**(given | others))  # type: ignore[arg-type]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))
