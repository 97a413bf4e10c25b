"""From the scheduler's choice to tensors and back: runs one step of the model, gives each request its next token.

The only part of the engine that touches torch at run time, always from the engine's thread.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.llama.engine.kv_cache import KVCache
from services.llama.engine.llama import Chunk, Llama, Step
from services.llama.engine.sampler import choose
from services.llama.engine.sequence import Sequence

Prefills = list[tuple[Sequence, int]]


class Runner:
    """The model with its cache."""

    def __init__(self, model: Llama, cache: KVCache) -> None:
        self._model = model
        self._cache = cache
        self._device = model.device
        self._columns = torch.arange(cache.context, device=self._device)

    def step(self, decoding: list[Sequence], prefills: Prefills) -> list[tuple[Sequence, int]]:
        """One forward pass; the next token of every request whose prompt is complete after it."""
        chunks = _chunks(len(decoding), prefills)
        hidden_TD = self._model.forward(self._prepare(decoding, prefills, chunks), self._cache)
        ready, rows = list(decoding), list(range(len(decoding)))
        for (sequence, count), chunk in zip(prefills, chunks, strict=True):
            if chunk.position + count == sequence.length:
                ready.append(sequence)
                rows.append(chunk.start + count - 1)
        if not ready:
            return []
        hidden_SD = hidden_TD if len(rows) == len(hidden_TD) else hidden_TD[rows]
        tokens = choose(self._model.logits(hidden_SD), [sequence.choice for sequence in ready])
        return list(zip(ready, tokens, strict=True))

    def _prepare(self, decoding: list[Sequence], prefills: Prefills, chunks: tuple[Chunk, ...]) -> Step:
        positions = [sequence.computed for sequence in decoding]
        slots = [sequence.slot for sequence in decoding]
        longest = max(positions, default=0) + 1
        positions_B = self._tensor(positions)
        hidden = []
        if decoding:
            hidden.append(self._model.embed(self._tensor([sequence.ids[-1] for sequence in decoding])))
        for (sequence, count), chunk in zip(prefills, chunks, strict=True):
            positions.extend(range(chunk.position, chunk.position + count))
            slots.extend([chunk.slot] * count)
            hidden.append(self._prompt(sequence, chunk))
        positions_T = self._tensor(positions) if prefills else positions_B
        return Step(
            hidden_TD=hidden[0] if len(hidden) == 1 else torch.cat(hidden),
            positions_T=positions_T,
            rows=self._cache.rows(self._tensor(slots), positions_T),
            decoding=len(decoding),
            longest=longest,
            mask=self._mask(positions_B, longest) if decoding else None,
            chunks=chunks,
        )

    def _mask(self, positions_B: Tensor, longest: int) -> Tensor:
        """float32 [decoding, longest]: 0 up to each request's own position, -inf beyond."""
        beyond = self._columns[:longest] > positions_B[:, None]
        return torch.zeros(beyond.shape, device=self._device).masked_fill_(beyond, -torch.inf)

    def _prompt(self, sequence: Sequence, chunk: Chunk) -> Tensor:
        """The embedded rows of a chunk; the whole prompt is embedded when its first chunk is."""
        if sequence.embedded_TD is None:
            sequence.embedded_TD = self._embed(sequence)
        rows = sequence.embedded_TD[chunk.position : chunk.position + chunk.count]
        if chunk.position + chunk.count == sequence.length:
            sequence.embedded_TD = None
        return rows

    def _embed(self, sequence: Sequence) -> Tensor:
        parts = []
        for number, piece in enumerate(sequence.prompt.pieces):
            if number:
                parts.append(self._model.project(torch.from_numpy(sequence.prompt.visuals[number - 1])))
            if piece:
                parts.append(self._model.embed(self._tensor(list(piece))))
        return torch.cat(parts)

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


def _chunks(start: int, prefills: Prefills) -> tuple[Chunk, ...]:
    chunks = []
    for sequence, count in prefills:
        chunks.append(Chunk(start, count, sequence.slot, sequence.computed))
        start += count
    return tuple(chunks)
