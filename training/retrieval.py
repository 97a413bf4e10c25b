"""Zero-shot retrieval: does a picture find its text among all, and a text its picture?

First by ITC (the best cosine over the queries), then the most similar `top_k` are ranked anew by ITM's positive logit
plus that cosine, as LAVIS evaluates BLIP-2. Things of one group are the same thing: any of them is right.
Legend: I images, T texts (one an image, so T = I), Q queries, J joint width, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.data.batch import Captions
from ziya.model.qformer import QFormerModule

AT = (1, 5, 10)
_PAIRS = 256


@torch.no_grad()
def retrieval(
    qformer: QFormerModule,
    features_IND: Tensor,
    captions: Captions,
    groups: Sequence[str],
    *,
    top_k: int = 128,
    batch: int = 128,
) -> dict[str, float]:
    """`itc_i2t_r1` … `itm_t2i_r10`, shares between 0 and 1. Image n and text n belong together."""
    similar_IT = similarities(qformer, features_IND, captions, batch)
    number = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    same = torch.tensor([number[group] for group in groups], device=similar_IT.device)
    found: dict[str, float] = {}
    for way, scores in (("i2t", similar_IT), ("t2i", similar_IT.T)):
        found |= {f"itc_{way}_r{k}": share for k, share in recalls(scores, same).items()}
        ranked = _rerank(qformer, features_IND, captions, scores, min(top_k, len(groups)), texts=way == "i2t")
        found |= {f"itm_{way}_r{k}": share for k, share in recalls(ranked, same).items()}
    return found


def similarities(qformer: QFormerModule, features_IND: Tensor, captions: Captions, batch: int) -> Tensor:
    """Best cosine over the queries of every image with every text, [I, T]."""
    images = torch.cat([qformer.embed_image(some) for some in torch.split(features_IND, batch)]).float()
    pairs = zip(torch.split(captions.ids_BT, batch), torch.split(captions.mask_BT, batch), strict=True)
    texts_TJ = torch.cat([qformer.embed_text(ids, mask) for ids, mask in pairs]).float()
    return torch.cat([torch.einsum("iqj,tj->itq", some, texts_TJ).amax(-1) for some in torch.split(images, batch)])


def recalls(scores_NM: Tensor, same_N: Tensor) -> dict[int, float]:
    """Share of rows whose own group is among their k best columns, for the k in AT."""
    best_NK = scores_NM.topk(min(max(AT), scores_NM.shape[1])).indices
    right_NK = same_N[best_NK] == same_N[:, None]
    return {k: float(right_NK[:, :k].any(1).float().mean()) for k in AT}


def _rerank(
    qformer: QFormerModule, features_IND: Tensor, captions: Captions, scores_NM: Tensor, top_k: int, *, texts: bool
) -> Tensor:
    """The same scores, with those of each row's `top_k` replaced by ITM logit + cosine and all others below them."""
    best = scores_NM.topk(top_k)
    rows = torch.arange(len(scores_NM), device=scores_NM.device).repeat_interleave(top_k)
    columns = best.indices.flatten()
    images, words = (rows, columns) if texts else (columns, rows)
    logits = [
        qformer.match(features_IND[some], captions.ids_BT[these], captions.mask_BT[these])[:, 1].float()
        for some, these in zip(torch.split(images, _PAIRS), torch.split(words, _PAIRS), strict=True)
    ]
    ranked_NM = torch.full_like(scores_NM, float("-inf"))
    ranked_NM[rows, columns] = torch.cat(logits) + best.values.flatten()
    return ranked_NM
