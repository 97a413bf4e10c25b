"""Zero-shot retrieval with a checkpoint: every picture among all texts, and every text among all pictures.

By ITC, then ITM's re-ranking of the `top_k` (training/retrieval.py). A picture may have several texts: it is right when
it finds any of them; each text must find the picture. R@k of pictures are over pictures, R@k of texts over texts. The
ViT's features and ITM's pairs are kept, so that a run that is killed goes on (training/scoring/match_memory.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.captions import Captioner
from training.data.pixels import PixelSource
from training.errors import BadConfig, BadData, BadSample
from training.model import there
from training.recipe import Images, Text
from training.retrieval import hits, numbered, ranked, unheard
from training.scoring.checkpoint_target import CheckpointTarget
from training.scoring.evaluation import Result
from training.scoring.item import Item
from training.scoring.match_memory import MatchMemory
from training.scoring.result import Scores
from training.scoring.store import Said
from training.scoring.tasks import Task
from ziya.instruction import load_instruction_tokenizer

BATCH = 64
Hits = Mapping[str, NDArray[np.float64]]
Doing = Callable[[str], None]


@dataclass(frozen=True)
class Retrieval:
    """Of the checkpoint in `folder`, that is `target`. `top_k` of each are ranked anew; `store` keeps it."""

    target: CheckpointTarget
    folder: Path
    store: Path
    round: int = 0
    top_k: int = 128
    doing: Doing = unheard

    def __call__(self, task: Task, items: Sequence[Item], bad: Sequence[BadSample] = ()) -> Result:
        """`itc_i2t_r1` … `itm_t2i_r10`; of an item's several texts each score is the mean.

        Raises BadConfig for a checkpoint without retrieval heads, BadData when fewer than two pictures can be used.
        """
        if not self.target.model.config.retrieval:
            raise BadConfig(f"{self.folder} has no retrieval heads: its Q-Former was not trained with ITC and ITM")
        usable, digests, wrong = _usable(items)
        if len(usable) < 2:
            raise BadData(f"retrieval: {len(usable)} of {len(items)} pictures can be used")
        with MatchMemory(self.store / f"retrieval-{self._name(usable, digests)}") as memory:
            found: Hits | None = memory.hits()
            cached = len(usable) if found is not None else 0
            if found is None:
                found = self._found(usable, memory)
                memory.finish(found)
        scores, said = _scores(usable, found), [Said("")] * len(usable)
        texts = sum(len(item.truths) for item in usable)
        notes = [f"among {len(usable)} pictures and {texts} texts, the best {self.top_k} ranked anew"]
        shown = [(digest,) for digest in digests]
        return Result(task, usable[0].language, usable, said, shown, scores, [*bad, *wrong], cached, notes)

    def _name(self, items: Sequence[Item], digests: Sequence[str]) -> str:
        digest = hashlib.sha256(f"{self.target.identity['checkpoint']} {self.top_k} {self.round}".encode())
        for item, picture in zip(items, digests, strict=True):
            digest.update(repr((picture, item.truths, item.group)).encode())
        return digest.hexdigest()[:24]

    @torch.inference_mode()
    def _found(self, items: Sequence[Item], memory: MatchMemory) -> dict[str, NDArray[np.float64]]:
        captioner = Captioner(load_instruction_tokenizer(self.folder), Text().caption_tokens)
        best = ranked(
            there(self.target.model.qformer, "qformer"),
            self._features(items, memory),
            captioner.batch([text for item in items for text in item.truths]),
            top_k=self.top_k,
            temperature=self.target.model.config.itc_temperature,
            beat=self.doing,
            memory=memory,
        )
        groups = [item.group or item.key for item in items]
        texts = [group for item, group in zip(items, groups, strict=True) for _ in item.truths]
        number = numbered([*groups, *texts])
        pictures_I, texts_T = number[: len(groups)], number[len(groups) :]
        found: dict[str, NDArray[np.float64]] = {}
        for way, best_IK in best.items():
            rows, columns = (pictures_I, texts_T) if way.endswith("i2t") else (texts_T, pictures_I)
            found |= {f"{way}_r{k}": right.numpy() for k, right in hits(best_IK, rows, columns).items()}
        return found

    def _features(self, items: Sequence[Item], memory: MatchMemory) -> Tensor:
        model, device = self.target.model, self.target.device
        source = PixelSource(model.preprocessing, Images(), 0, keep_bytes=0)

        def encode(start: int) -> Tensor:
            self.doing(f"encoding pictures: {start} of {len(items)}")
            files = [(item.key, item.pictures[0]()) for item in items[start : start + BATCH]]
            pixels, wrong = source.pixels(files, [0] * len(files))
            if broken := next(filter(None, wrong), None):
                raise BadData(f"{broken}; take it out, for a ranking needs every picture")
            return model.features(pixels.to(device))

        size = model.preprocessing.size
        shape = model.features(torch.zeros(1, 3, size, size, device=device)).shape[1:]
        return memory.features(len(items), tuple(shape), encode, BATCH)


def _usable(items: Sequence[Item]) -> tuple[list[Item], list[str], list[BadSample]]:
    usable: list[Item] = []
    digests: list[str] = []
    wrong: list[BadSample] = []
    for item in items:
        try:
            if len(item.pictures) != 1:
                raise BadSample(item.key, f"wrong image: retrieval is about one picture, not {len(item.pictures)}")
            digests.append(hashlib.sha256(item.pictures[0]()).hexdigest())
            usable.append(item)
        except BadSample as error:
            wrong.append(error)
    return usable, digests, wrong


def _scores(items: Sequence[Item], found: Hits) -> Scores:
    counts = [len(item.truths) for item in items]
    ends = np.cumsum(counts)
    each = {
        name: [float(value) for value in right]
        if "_i2t_" in name
        else [float(right[end - count : end].mean()) for end, count in zip(ends, counts, strict=True)]
        for name, right in found.items()
    }
    return Scores({name: float(right.mean()) for name, right in found.items()}, each)
