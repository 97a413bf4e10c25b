"""What a stage's model can do, on held-out data: retrieval, and exact answers to a task's first question.

Pictures go the road of served ones (`ziya.images`, the checkpoint's own preprocessing). Of several processes each
encodes and answers its share; every process ends with the same numbers. A record that cannot be used is left out.
Legend: I images, N and D features, Q queries.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.answers import Prompt, answers, is_right
from training.data.captions import Captioner
from training.data.pixels import PixelSource
from training.data.record import Record
from training.data.rows import Encoder
from training.data.shards import Dataset
from training.data.tasks import caption_text, conversation
from training.distributed import World
from training.errors import BadConfig, BadSample
from training.model import VisualLanguageModel, there
from training.recipe import Check, Images
from training.retrieval import retrieval

T = TypeVar("T")
BATCH = 128
MAX_ANSWER = 64


class _First(random.Random):
    """Always takes the first: an evaluation asks one wording."""

    def choice(self, seq: Any) -> Any:
        return seq[0]


@dataclass(frozen=True)
class _Item:
    """A usable record and the ViT's features of its images, [images, N, D]."""

    record: Record
    features: Tensor


@dataclass
class Examiner:
    """Runs `checks` on `model`, whose modules must all be loaded. `datasets` are by the checks' `data`."""

    model: VisualLanguageModel
    checks: Sequence[Check]
    datasets: Mapping[str, Dataset]
    world: World
    tokenizer: Tokenizer | None = None
    encoder: Encoder | None = None
    captioner: Captioner | None = None
    _features: dict[tuple[str, int | None], list[_Item]] = field(default_factory=dict, init=False)

    @torch.no_grad()
    def __call__(self, *, keep_features: bool = False) -> dict[str, float]:
        """Metrics by `<check>.<metric>`. `keep_features` where the ViT is frozen: they are then computed once."""
        was_training = self.model.training
        self.model.eval()
        if not keep_features:
            self._features.clear()
        found: dict[str, float] = {}
        for check in self.checks:
            items = self._items(check)
            metrics = self._retrieval(check, items) if check.kind == "retrieval" else self._answers(check, items)
            found |= {f"{check.name}.{name}": value for name, value in metrics.items()}
        self.model.train(was_training)
        return found

    def _items(self, check: Check) -> list[_Item]:
        """This process's share."""
        place = (check.data, check.limit)
        if place not in self._features:
            dataset = self.datasets[check.data]
            count = len(dataset) if check.limit is None else min(check.limit, len(dataset))
            chosen = [number * len(dataset) // count for number in range(count)]
            self._features[place] = self._encode(dataset, chosen[self.world.rank :: self.world.size])
        return self._features[place]

    def _encode(self, dataset: Dataset, numbers: Sequence[int]) -> list[_Item]:
        source = PixelSource(self.model.preprocessing, Images(), 0, keep_bytes=0)
        items: list[_Item] = []
        for start in range(0, len(numbers), BATCH):
            records: list[Record] = []
            pixels: list[Tensor] = []
            for number in numbers[start : start + BATCH]:
                try:
                    record = dataset.record(number)
                    files = [(record.key, dataset.image(number, image)) for image in range(record.images)]
                except BadSample:
                    continue
                made, bad = source.pixels(files, [0] * len(files))
                if not any(bad):
                    records.append(record)
                    pixels.append(made)
            if records:
                every = torch.cat(pixels).to(self.world.device)
                features = self.model.features(every) if len(every) else every
                parts = torch.split(features, [record.images for record in records])
                items += [_Item(record, part) for record, part in zip(records, parts, strict=True)]
        return items

    def _retrieval(self, check: Check, items: Sequence[_Item]) -> dict[str, float]:
        if self.captioner is None or not self.model.config.retrieval:
            raise BadConfig(f"check {check.name}: this model's Q-Former has no retrieval heads")
        usable, texts, groups = [], [], []
        for item in items:
            try:
                texts.append(caption_text(item.record, check, _First()))
            except BadSample:
                continue
            usable.append(item.features[:1].cpu())
            groups.append(str(item.record.fields.get("group", item.record.key)))
        # Every process ranks all of them: the features come together, the work of ITC is small beside the ViT's.
        features = torch.cat(self.world.gather(usable)).to(self.world.device)
        captions = self.captioner.batch(self.world.gather(texts))
        qformer = there(self.model.qformer, "qformer")
        return retrieval(qformer, features, captions, self.world.gather(groups), top_k=check.top_k)

    def _answers(self, check: Check, items: Sequence[_Item]) -> dict[str, float]:
        assert self.encoder is not None
        assert self.tokenizer is not None
        templates = self.datasets[check.data].templates
        prompts, truths, tokens = [], [], []
        for item in items:
            try:
                spoken = conversation(item.record, check, templates, _First())
                piece = self.encoder.piece(spoken, item.record.key)
            except BadSample:
                continue
            # The answer is what stands after the last position that is not learnt.
            length = max(place for place, learnt in enumerate(piece.learnt) if not learnt) + 1
            prompts.append(Prompt(piece.ids[:length], piece.visual[:length]))
            truths.append(spoken.turns[-1].text)
            tokens.append(self._tokens(item, spoken.turns[0].text).flatten(0, 1))
        end = self.tokenizer.token_to_id(self.encoder.template.turn_end) or 0
        said = answers(self.model, prompts, tokens, end=end, max_tokens=MAX_ANSWER)
        texts = [self.tokenizer.decode(ids) for ids in said]
        right = sum(is_right(text, [truth]) for text, truth in zip(texts, truths, strict=True))
        all_right, asked = self.world.sum([float(right), float(len(truths))])
        return {"exact": all_right / asked if asked else 0.0}

    def _tokens(self, item: _Item, question: str) -> Tensor:
        if not len(item.features):
            return item.features.new_zeros(0, self.model.config.queries, self.model.config.qformer_width)
        instructions = None
        if self.model.config.qformer_reads_instruction and self.captioner is not None:
            instructions = self.captioner.instructions([question] * len(item.features))
        return self.model.tokens(item.features, instructions)
