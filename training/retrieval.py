"""Zero-shot retrieval: does a picture find its text among all, and a text its picture?

First by ITC (the best cosine over the queries), then the `top_k` most similar are ranked anew by both: ITM's log-odds
that the pair matches plus the cosine divided by ITC's temperature, which are the logarithms of what each of the two
losses has learnt to be the odds. LAVIS adds the cosine as it is to ITM's positive logit, where it hardly weighs
anything: `temperature` 1 is nearly that. The others stay behind them in ITC's order. Things of one group are the
same thing: any of them is right. A pair that is a candidate of its picture and of its text is matched once.

Legend: I images and as many texts, N and D features, Q queries, J joint width, B rows of a batch, K candidates of a
row, P pairs. A pair is one number, image x I + text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


@torch.no_grad()
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
    count = len(groups)
    if top_k < 1 or not len(features_IND) == len(captions.ids_BT) == count > 0:
        raise ValueError(
            f"{len(features_IND)} images, {len(captions.ids_BT)} texts, {count} groups, top {top_k}: "
            "an image, its text and its group belong together, and there must be some"
        )
    number = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    same_I = torch.tensor([number[group] for group in groups])
    reader = _Reader(qformer, features_IND, captions, batch, world, beat)
    rankings = reader.contrast(min(max(top_k, *AT), count))
    candidates = [ranking.best_IK[:, :top_k] for ranking in rankings]
    rows_I1 = torch.arange(count)[:, None]
    pairs = [rows_I1 * count + candidates[0], candidates[1] * count + rows_I1]
    once_P: Tensor = torch.unique(torch.cat([some.flatten() for some in pairs]))
    odds_P = reader.match(once_P)
    found: dict[str, float] = {}
    for way, ranking, pairs_IK in zip(("i2t", "t2i"), rankings, pairs, strict=True):
        again_IK = reranked(ranking, odds_P[torch.searchsorted(once_P, pairs_IK)], temperature)
        found |= {f"itc_{way}_r{k}": share for k, share in recalls(ranking.best_IK, same_I).items()}
        found |= {f"itm_{way}_r{k}": share for k, share in recalls(again_IK, same_I).items()}
    return found


def recalls(best_IK: Tensor, same_I: Tensor) -> dict[int, float]:
    """Share of rows that have one of their own group among their k best columns, for the k in AT."""
    right_IK = same_I[best_IK] == same_I[:, None]
    return {k: float(right_IK[:, :k].any(1).double().mean()) for k in AT}


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
        images_IQJ, texts_IJ = self._embeddings()
        of_images = [_best(_cosines(some, texts_IJ), kept) for some in torch.split(images_IQJ, self.batch)]
        of_texts = [_best(_cosines(images_IQJ, some).T, kept) for some in torch.split(texts_IJ, self.batch)]
        both = _joined(of_images), _joined(of_texts)
        # One process's word: another device may round two equal cosines the other way.
        return self.world.gather([both] if self.world.rank == 0 else [])[0]

    def match(self, pairs_P: Tensor) -> Tensor:
        """ITM's log-odds of each pair, float32 on the CPU."""
        odds = []
        for some in self._parts(len(pairs_P)):
            self.beat(f"matching pictures and texts: {some.stop} of {len(pairs_P)} pairs")
            images, texts = pairs_P[some] // len(self.features_IND), pairs_P[some] % len(self.features_IND)
            logits_B2 = self.qformer.match(self._features(images), *self._texts(texts)).float()
            odds.append((logits_B2[:, 1] - logits_B2[:, 0]).cpu())
        return torch.cat(self.world.gather(odds))

    def _embeddings(self) -> tuple[Tensor, Tensor]:
        """Unit vectors of all images [I, Q, J] and texts [I, J], on the Q-Former's device."""
        images, texts = list[Tensor](), list[Tensor]()
        for some in self._parts(len(self.features_IND)):
            self.beat(f"embedding pictures and texts: {some.stop} of {len(self.features_IND)}")
            places = torch.arange(some.start, some.stop)
            images.append(self.qformer.embed_image(self._features(places)).float().cpu())
            texts.append(self.qformer.embed_text(*self._texts(places)).float().cpu())
        device = self.qformer.query_tokens.device
        images_IQJ, texts_IJ = torch.cat(self.world.gather(images)), torch.cat(self.world.gather(texts))
        return images_IQJ.to(device), texts_IJ.to(device)

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
    best = cosines_BI.topk(kept)
    return Ranking(best.values.cpu(), best.indices.cpu())


def _joined(parts: Sequence[Ranking]) -> Ranking:
    return Ranking(torch.cat([part.cosine_IK for part in parts]), torch.cat([part.best_IK for part in parts]))
