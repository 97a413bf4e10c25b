"""What the gateway knows about one request while it is being answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from services.gateway.dialogue import Ask
from services.gateway.encoders import Encoded, Visual
from services.gateway.llama import LlamaStream, Piece


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image of the answer's report. `cached`: its visual tokens were not computed for this request."""

    image_id: str
    cached: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of positions. `cached` and `image` are parts of `prompt`."""

    prompt: int
    image: int
    cached: int
    completion: int


@dataclass(frozen=True, slots=True)
class Summary:
    """The end of an answer: why it ended, what it cost, and how long each stage took (seconds)."""

    finish_reason: str
    usage: Usage
    stage_seconds: dict[str, float]
    images: tuple[ImageInfo, ...]


@dataclass(slots=True)
class Job:
    """One request. `computed` holds the token keys that were computed for it, in whichever attempt.

    `works`: what was queued on the bus for it, as its encodes said. `texts_came`: it needs none of that any more.
    `stream`: the latest attempt's.
    """

    ask: Ask
    texts: Sequence[str] = ()
    visuals: Sequence[Visual] = ()
    inline: bool = False
    works: list[str] = field(default_factory=list)
    texts_came: bool = False
    stream: LlamaStream | None = None
    computed: set[str] = field(default_factory=set)
    encodes: list[asyncio.Task[None]] = field(default_factory=list)
    stage_seconds: dict[str, float] = field(default_factory=dict)

    def unique(self) -> dict[str, Visual]:
        """The images by their token key: equal ones are asked for once."""
        return {visual.tokens_key: visual for visual in self.visuals}

    def mark(self, stage: str) -> None:
        """Notes the seconds since the request's arrival."""
        self.stage_seconds[stage] = time.monotonic() - self.ask.started

    def note(self, key: str, encoded: Encoded[Any]) -> None:
        """Keeps the slowest image's seconds of each stage; images are encoded side by side."""
        (self.computed.discard if encoded.shared else self.computed.add)(key)
        if encoded.work_id:
            self.works.append(encoded.work_id)
        for stage, seconds in encoded.stage_seconds.items():
            self.stage_seconds[stage] = max(self.stage_seconds.get(stage, 0.0), seconds)

    def summary(self, last: Piece) -> Summary:
        """The report, from the model's last piece."""
        usage = last.usage or {}
        for stage, name in (
            ("visual_wait", "visual_wait_seconds"),
            ("llama_queue", "queue_seconds"),
            ("prefill", "prefill_seconds"),
            ("decode", "decode_seconds"),
        ):
            self.stage_seconds[stage] = float(usage.get(name, 0.0))
        self.mark("total")
        images = tuple(ImageInfo(v.picture.image_id, v.tokens_key not in self.computed) for v in self.visuals)
        image_tokens = int(usage.get("image_tokens", 0))
        each = image_tokens // len(images) if images else 0
        return Summary(
            finish_reason=last.finish_reason,
            usage=Usage(
                prompt=int(usage.get("prompt_tokens", 0)),
                image=image_tokens,
                cached=each * sum(image.cached for image in images),
                completion=int(usage.get("completion_tokens", 0)),
            ),
            stage_seconds={stage: round(seconds, 6) for stage, seconds in self.stage_seconds.items()},
            images=images,
        )
