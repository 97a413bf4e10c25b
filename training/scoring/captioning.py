"""All caption metrics of a corpus, by every way to cut its language into words."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from training.scoring.bleu import bleu
from training.scoring.cider import cider_d
from training.scoring.result import Scores
from training.scoring.rouge import rouge_l
from training.scoring.words import cuts


def caption_scores(said: Sequence[str], truths: Sequence[Sequence[str]], language: str) -> Scores:
    """`<cut>.bleu_1` … `<cut>.bleu_4` and `rouge_l` (0 to 1), `cider_d` (0 to 10); the last two also of every item."""
    metrics: dict[str, float] = {}
    each: dict[str, list[float]] = {}
    for name, cut in cuts(language).items():
        words = [cut(text) for text in said]
        references = [[cut(text) for text in texts] for texts in truths]
        metrics |= {f"{name}.bleu_{order}": score for order, score in enumerate(bleu(words, references), 1)}
        each[f"{name}.rouge_l"] = [rouge_l(*pair) for pair in zip(words, references, strict=True)]
        each[f"{name}.cider_d"] = cider_d(words, references)
        metrics |= {metric: fmean(each[metric]) for metric in (f"{name}.rouge_l", f"{name}.cider_d")}
    return Scores(metrics, each)
