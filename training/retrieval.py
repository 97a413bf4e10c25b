"""Zero-shot retrieval: does a picture find its text among all, and a text its picture?

First by ITC (the best cosine over the queries), then the `top_k` most similar are ranked anew by both: ITM's log-odds
that the pair matches plus the cosine divided by ITC's temperature, which are the logarithms of what each of the two
losses has learnt to be the odds. LAVIS adds the cosine as it is to ITM's positive logit, where it hardly weighs
anything: `temperature` 1 is nearly that. The others stay behind them in ITC's order. Things of one group are the
same thing: any of them is right. A pair that is a candidate of its picture and of its text is matched once.

Legend: I images, T texts, N and D features, Q queries, J joint width, B rows of a batch, K candidates of a row, P
pairs. A pair is one number, image x T + text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from training.data.batch import Captions
from training.distributed import World
from ziya.model.qformer import QFormerModule

AT = (1, 5, 10)
Beat = Callable[[str], None]
_ALONE = World()


def unheard(doing: str) -> None:
    """What is told of the progress when nobody listens."""


class Ranking(NamedTuple):
    """The best columns of every row, best first, and their cosines; both [I, K] on the CPU."""

    cosine_IK: Tensor
    best_IK: Tensor


class Memory(Protocol):
    """Keeps ITM's log-odds of pairs, so that a run that was killed matches only what is left."""

    def known(self, pairs_P: Tensor) -> Tensor:
        """Float32 [P], NaN where a pair was not matched."""
        ...

    def keep(self, pairs_P: Tensor, odds_P: Tensor) -> None: ...


def retrieval(
    qformer: QFormerModule,
    features_IND: Tensor,
    captions: Captions,
    groups: Sequence[str],
    *,
    top_k: int = 128,
    temperature: float = 0.07,
    batch: int = 128,
    world: World = _ALONE,
    beat: Beat = unheard,
) -> dict[str, float]:
    """`itc_i2t_r1` … `itm_t2i_r10`, shares between 0 and 1. Image n and text n belong together.

    All processes give the same arguments, each does its part, and all get the same result. Features and captions may
    lie on the CPU: a batch at a time goes to the Q-Former's device. `beat` hears of every batch.
    """
    if top_k < 1 or not len(features_IND) == len(captions.ids_BT) == len(groups) > 0:
        raise ValueError(
            f"{len(features_IND)} images, {len(captions.ids_BT)} texts, {len(groups)} groups, top {top_k}: "
            "an image, its text and its group belong together, and there must be some"
        )
    reader = _Reader(qformer, features_IND, captions, batch, world, beat)
    same_I = numbered(groups)
    return {
        f"{way}_r{k}": share
        for way, best_IK in _ranked(reader, top_k, temperature, None).items()
        for k, share in recalls(best_IK, same_I).items()
    }


def ranked(
    qformer: QFormerModule,
    features_IND: Tensor,
    captions: Captions,
    *,
    top_k: int = 128,
    temperature: float = 0.07,
    batch: int = 128,
    beat: Beat = unheard,
    memory: Memory | None = None,
) -> dict[str, Tensor]:
    """The best texts of every image, `itc_i2t` and `itm_i2t`, and images of every text, `…_t2i`: [rows, K], best first.

    There may be more texts than images, or fewer. Of one process. `memory` is asked before a pair is matched.
    """
    return _ranked(_Reader(qformer, features_IND, captions, batch, _ALONE, beat), top_k, temperature, memory)


@torch.no_grad()
def _ranked(reader: _Reader, top_k: int, temperature: float, memory: Memory | None) -> dict[str, Tensor]:
    texts = len(reader.captions.ids_BT)
    rankings = reader.contrast(max(top_k, *AT))
    candidates = [ranking.best_IK[:, :top_k] for ranking in rankings]
    rows = [torch.arange(len(some))[:, None] for some in candidates]
    pairs = [rows[0] * texts + candidates[0], candidates[1] * texts + rows[1]]
    once_P: Tensor = torch.unique(torch.cat([some.flatten() for some in pairs]))
    odds_P = reader.match(once_P, memory)
    found: dict[str, Tensor] = {}
    for way, ranking, pairs_IK in zip(("i2t", "t2i"), rankings, pairs, strict=True):
        found[f"itc_{way}"] = ranking.best_IK
        found[f"itm_{way}"] = reranked(ranking, odds_P[torch.searchsorted(once_P, pairs_IK)], temperature)
    return found


def numbered(groups: Sequence[str]) -> Tensor:
    """A number for every group."""
    number = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    return torch.tensor([number[group] for group in groups])


def hits(best_IK: Tensor, rows_I: Tensor, columns_J: Tensor) -> dict[int, Tensor]:
    """Whether a row has one of its own group among its k best columns, float64 [I] of 0 and 1, for the k in AT."""
    right_IK = columns_J[best_IK] == rows_I[:, None]
    return {k: right_IK[:, :k].any(1).double() for k in AT}


def recalls(best_IK: Tensor, same_I: Tensor) -> dict[int, float]:
    """Share of rows that have one of their own group among their k best columns, for the k in AT."""
    return {k: float(found_I.mean()) for k, found_I in hits(best_IK, same_I, same_I).items()}


def reranked(ranking: Ranking, odds_IK: Tensor, temperature: float) -> Tensor:
    """The best columns again, the first of them in the order of log-odds + cosine / temperature; the rest stays."""
    first = odds_IK.shape[1]
    order_IK = (odds_IK + ranking.cosine_IK[:, :first] / temperature).argsort(dim=1, descending=True)
    return torch.cat([ranking.best_IK.gather(1, order_IK), ranking.best_IK[:, first:]], dim=1)


@dataclass(frozen=True)
class _Reader:
    """The Q-Former over all pictures and texts, a batch at a time; of several processes each does a part."""

    qformer: QFormerModule
    features_IND: Tensor
    captions: Captions
    batch: int
    world: World
    beat: Beat

    def contrast(self, kept: int) -> tuple[Ranking, Ranking]:
        """By ITC, the `kept` best texts of every image and the best images of every text."""
        images_IQJ, texts_TJ = self._embeddings()
        of_images = [_best(_cosines(some, texts_TJ), kept) for some in torch.split(images_IQJ, self.batch)]
        of_texts = [_best(_cosines(images_IQJ, some).T, kept) for some in torch.split(texts_TJ, self.batch)]
        both = _joined(of_images), _joined(of_texts)
        # One process's word: another device may round two equal cosines the other way.
        return self.world.gather([both] if self.world.rank == 0 else [])[0]

    def match(self, pairs_P: Tensor, memory: Memory | None = None) -> Tensor:
        """ITM's log-odds of each pair, float32 on the CPU."""
        if memory is None:
            return self._matched(pairs_P, None)
        odds_P = memory.known(pairs_P)
        missing_P = odds_P.isnan()
        if missing_P.any():
            odds_P[missing_P] = self._matched(pairs_P[missing_P], memory)
        return odds_P

    def _matched(self, pairs_P: Tensor, memory: Memory | None) -> Tensor:
        odds, count = [], len(self.captions.ids_BT)
        for some in self._parts(len(pairs_P)):
            self.beat(f"matching pictures and texts: {some.stop} of {len(pairs_P)} pairs")
            images, texts = pairs_P[some] // count, pairs_P[some] % count
            logits_B2 = self.qformer.match(self._features(images), *self._texts(texts)).float()
            odds.append((logits_B2[:, 1] - logits_B2[:, 0]).cpu())
            if memory is not None:
                memory.keep(pairs_P[some], odds[-1])
        return torch.cat(self.world.gather(odds))

    def _embeddings(self) -> tuple[Tensor, Tensor]:
        """Unit vectors of all images [I, Q, J] and texts [T, J], on the Q-Former's device."""
        images, texts = list[Tensor](), list[Tensor]()
        for some in self._parts(len(self.features_IND)):
            self.beat(f"embedding pictures: {some.stop} of {len(self.features_IND)}")
            images.append(self.qformer.embed_image(self._features(torch.arange(some.start, some.stop))).float().cpu())
        for some in self._parts(len(self.captions.ids_BT)):
            self.beat(f"embedding texts: {some.stop} of {len(self.captions.ids_BT)}")
            texts.append(self.qformer.embed_text(*self._texts(torch.arange(some.start, some.stop))).float().cpu())
        device = self.qformer.query_tokens.device
        images_IQJ, texts_TJ = torch.cat(self.world.gather(images)), torch.cat(self.world.gather(texts))
        return images_IQJ.to(device), texts_TJ.to(device)

    def _parts(self, count: int) -> Iterator[slice]:
        """Batches of this process's share of `count`."""
        first, end = (count * (self.world.rank + more) // self.world.size for more in (0, 1))
        for start in range(first, end, self.batch):
            yield slice(start, min(end, start + self.batch))

    def _features(self, images: Tensor) -> Tensor:
        return self.features_IND[images.to(self.features_IND.device)].to(self.qformer.query_tokens.device)

    def _texts(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        texts, device = texts.to(self.captions.ids_BT.device), self.qformer.query_tokens.device
        return self.captions.ids_BT[texts].to(device), self.captions.mask_BT[texts].to(device)


def _cosines(images_BQJ: Tensor, texts_BJ: Tensor) -> Tensor:
    """Best over the queries, [images, texts]. In float32: bfloat16 would make most of them equal."""
    with torch.autocast(images_BQJ.device.type, enabled=False):
        # Query by query, so that memory does not grow with their number.
        best, *others = images_BQJ.unbind(1)
        cosines = best @ texts_BJ.T
        for query_BJ in others:
            cosines = torch.maximum(cosines, query_BJ @ texts_BJ.T)
        return cosines


def _best(cosines_BI: Tensor, kept: int) -> Ranking:
    best = cosines_BI.topk(min(kept, cosines_BI.shape[1]))
    return Ranking(best.values.cpu(), best.indices.cpu())


def _joined(parts: Sequence[Ranking]) -> Ranking:
    return Ranking(torch.cat([part.cosine_IK for part in parts]), torch.cat([part.best_IK for part in parts]))
