"""All losses of a recipe as one module: a batch goes in, sums of losses come out.

It is the one entry of a training step, so that DDP and FSDP see every forward pass, and it owns what only training
needs: the captioning head, the temperature, the label heads. Those are saved with a run and are no part of the model.

A loss is a *sum* over what this process has; `counts` tells, before the forward pass, over how many. The loop adds
both up over processes and takes  Σ weight · sum / count,  with gradients summed (see training/peers.py).
Every process runs the same modules whatever it was dealt: without a picture or a text it takes a blank of no weight.

Legend: B samples, I images, N ViT features, Q queries, T text tokens, J joint width, G samples everywhere, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.blanks import blank_captions, blank_pictures, blank_rows
from training.data.batch import Batch, Captions, Pictures
from training.errors import BadConfig
from training.lora import whole
from training.losses import captioning, classify, contrast, language, lengths, matching, memory
from training.model import VisualLanguageModel, there
from training.peers import Peers
from training.recipe import LOSSES, PACKED, Recipe
from ziya.model.qformer import QFormerModule

RETRIEVAL = frozenset({"itc", "itm", "itg"})


class Losses(NamedTuple):
    """A scalar sum with gradient for each of the recipe's losses, and for `lm` without gradient by source:
    `by_source[0]` are sums and `by_source[1]` numbers of tokens, in the order of the recipe's sources."""

    sums: dict[str, Tensor]
    by_source: Tensor


class Crowd(NamedTuple):
    """All samples of the global micro-batch beside this process's own; similarities are divided by the temperature."""

    to_text_BG: Tensor
    to_image_BG: Tensor
    group_G: Tensor
    valid_G: Tensor
    images_GQJ: Tensor
    texts_GJ: Tensor


class Objectives(nn.Module):
    """`label_classes` gives the number of classes of each label that the recipe names."""

    def __init__(self, model: VisualLanguageModel, recipe: Recipe, label_classes: Mapping[str, int]) -> None:
        super().__init__()
        _check(model, recipe, label_classes)
        self.model, self.recipe = model, recipe
        self.memory = memory.Memory(recipe.negative_memory if "itm" in recipe.losses else 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            if "itg" in recipe.losses:
                text = there(model.qformer, "qformer").config
                self.itg_head = captioning.CaptionHead(text.hidden_size, text.vocab_size, text.layer_norm_eps)
            if {"itc", "itm"} & set(recipe.losses):
                # One element and not a scalar, which could not be sharded.
                self.temperature = nn.Parameter(torch.tensor([model.config.itc_temperature]))
            if "classify" in recipe.losses:
                width = model.config.vision_width
                self.label_heads = nn.ModuleDict(
                    {name: nn.Linear(width, label_classes[name]) for name in recipe.labels}
                )

    def itc_temperature(self) -> float:
        """As it is now; where no loss of the recipe has one, the checkpoint's. With FSDP every process has to ask."""
        known = getattr(self, "temperature", None)
        return self.model.config.itc_temperature if known is None else float(contrast.bounded(whole(known)))

    def blocks(self) -> list[nn.Module]:
        """The transformer layers of all loaded parts: units of sharding, of recomputing and of compiling."""
        model, found = self.model, list[nn.Module]()
        if model.vision is not None:
            found += model.vision.encoder.layers
        if model.qformer is not None:
            found += model.qformer.qformer.encoder.layer
        if model.llama is not None:
            found += model.llama.model.layers
        return found

    def counts(self, batch: Batch) -> dict[str, float]:
        """Over how many each of the recipe's losses is summed on this process."""
        valid = float(batch.valid_B.sum())
        counts = {"itc": valid, "itm": matching.PAIRS * valid, "classify": valid, "itg": 0.0, "lm": 0.0}
        if batch.captions is not None:
            counts["itg"] = float(captioning.predicted(batch.captions, batch.valid_B).sum())
        if batch.rows is not None:
            counts["lm"] = float(language.predicted(batch.rows, batch.valid_B).sum())
        return {name: counts[name] for name in self.recipe.losses}

    def forward(self, batch: Batch, peers: Peers) -> Losses:
        """Every process calls it for the same micro-batch at the same time."""
        losses = set(self.recipe.losses)
        # None, or a Pictures of length 0.
        pictures = batch.pictures or blank_pictures(batch, self.model, self.recipe)
        features_IND = self._features(pictures)
        sums: dict[str, Tensor] = {}
        seen_IQD = pictures.tokens_IQD
        if losses & RETRIEVAL:
            sums, seen_IQD = self._retrieval(batch, _need(features_IND), peers)
        if "classify" in losses:
            sums["classify"] = self._classify(batch, _need(features_IND))
        by_source = batch.valid_B.new_zeros(2, len(self.recipe.data), dtype=torch.float32)
        if "lm" in losses:
            if seen_IQD is None or self.model.config.qformer_reads_instruction:
                seen_IQD = self.model.tokens(_need(features_IND), self._instructions(batch, pictures))
            sums["lm"], by_source = self._language(batch, seen_IQD)
        return Losses({name: sums[name] for name in self.recipe.losses}, by_source)

    def _features(self, pictures: Pictures) -> Tensor | None:
        if pictures.pixels_I3SS is not None:
            return self.model.features(pictures.pixels_I3SS)
        return pictures.features_IND

    def _instructions(self, batch: Batch, pictures: Pictures) -> Captions | None:
        if not self.model.config.qformer_reads_instruction:
            return None
        if not batch.pictures:
            return blank_captions(batch, len(pictures))
        if batch.instructions is None:
            raise BadConfig("this model's Q-Former reads the instruction, but the batch has none for its pictures")
        return batch.instructions

    def _retrieval(self, batch: Batch, features_BND: Tensor, peers: Peers) -> tuple[dict[str, Tensor], Tensor]:
        """ITC, ITM and ITG, and the visual tokens, which the first pass gives anyway."""
        if len(features_BND) != len(batch.valid_B):
            raise BadConfig(
                f"{len(features_BND)} pictures for {len(batch.valid_B)} samples: these losses need one each"
            )
        qformer, sums = there(self.model.qformer, "qformer"), dict[str, Tensor]()
        captions = batch.captions or blank_captions(batch, len(batch.valid_B))
        if "itg" in self.recipe.losses:
            tokens_BQD, sums["itg"] = self._captioning(batch, qformer, features_BND, captions)
        else:
            tokens_BQD = qformer.query(features_BND)
        if "itc" in self.recipe.losses or "itm" in self.recipe.losses:
            with torch.set_grad_enabled(torch.is_grad_enabled() and "itc" in self.recipe.losses):
                crowd = self._crowd(batch, qformer, tokens_BQD, captions, peers)
            if "itc" in self.recipe.losses:
                sums["itc"] = self._contrast(batch, crowd)
            if "itm" in self.recipe.losses:
                sums["itm"] = self._matching(batch, crowd, features_BND, captions, peers)
        return sums, tokens_BQD

    def _captioning(
        self, batch: Batch, qformer: QFormerModule, features_BND: Tensor, captions: Captions
    ) -> tuple[Tensor, Tensor]:
        """The outputs at the queries [B, Q, D], and ITG's sum."""
        words_VD, start = qformer.embeddings.word_embeddings.weight, self.model.start_token
        rows, tokens, sums = list[Tensor](), list[Tensor](), list[Tensor]()
        for rows_K, some in lengths.by_length(captions, self.recipe.text.caption_groups):
            tokens_KQD, text_KTD = captioning.decode(qformer, lengths.chosen(features_BND, rows_K), some, start)
            smoothing, valid_K = self.recipe.label_smoothing, batch.valid_B[rows_K]
            sums.append(captioning.captioning(self.itg_head, words_VD, text_KTD, some, valid_K, smoothing=smoothing))
            rows.append(rows_K)
            tokens.append(tokens_KQD)
        return lengths.in_order(rows, tokens), torch.stack(sums).sum()

    def _crowd(
        self, batch: Batch, qformer: QFormerModule, tokens_BQD: Tensor, captions: Captions, peers: Peers
    ) -> Crowd:
        images_BQJ = qformer.vision_projection(tokens_BQD)
        groups = list(lengths.by_length(captions, self.recipe.text.caption_groups))
        texts = [qformer.embed_text(some.ids_BT, some.mask_BT) for _, some in groups]
        texts_BJ = lengths.in_order([at for at, _ in groups], texts)
        with torch.autocast(tokens_BQD.device.type, enabled=False):
            images_BQJ = nn.functional.normalize(_exact(images_BQJ), dim=-1)
            texts_BJ = nn.functional.normalize(_exact(texts_BJ), dim=-1)
            images_GQJ, texts_GJ = peers.gather(images_BQJ), peers.gather(texts_BJ)
            to_text_BG, to_image_BG = contrast.similarity(images_BQJ, texts_BJ, images_GQJ, texts_GJ)
            temperature = contrast.bounded(_exact(self.temperature))
            return Crowd(
                to_text_BG / temperature,
                to_image_BG / temperature,
                peers.gather_plain(batch.group_B),
                peers.gather_plain(batch.valid_B),
                images_GQJ.detach(),
                texts_GJ.detach(),
            )

    def _contrast(self, batch: Batch, crowd: Crowd) -> Tensor:
        smoothing, dtype = self.recipe.label_smoothing, crowd.to_text_BG.dtype
        targets_BG = contrast.targets(batch.group_B, crowd.group_G, crowd.valid_G, smoothing, dtype)
        return contrast.contrast(crowd.to_text_BG, crowd.to_image_BG, targets_BG, batch.valid_B, crowd.valid_G)

    def _matching(self, batch: Batch, crowd: Crowd, features_BND: Tensor, captions: Captions, peers: Peers) -> Tensor:
        qformer = there(self.model.qformer, "qformer")
        longest = self.recipe.text.caption_tokens if self.memory.size else None
        own, every = _gather_captions(captions, peers, longest)
        now = memory.Seen(
            crowd.images_GQJ,
            crowd.texts_GJ,
            crowd.group_G,
            crowd.valid_G,
            peers.gather(features_BND),
            every.ids_BT,
            every.mask_BT,
        )
        pool = self.memory.beside(now)
        wrong = self._draw(batch, crowd, pool, peers)
        images_PBND = torch.cat([features_BND, pool.features_of(wrong.image_B), features_BND])
        ids_PBT = torch.cat([own.ids_BT, own.ids_BT, pool.ids_CT[wrong.text_B]])
        mask_PBT = torch.cat([own.mask_BT, own.mask_BT, pool.mask_CT[wrong.text_B]])
        widest = int(mask_PBT.sum(1).max()) if self.memory.size else mask_PBT.shape[1]
        self.memory.remember(now)
        texts = Captions(ids_PBT[:, :widest], mask_PBT[:, :widest])
        groups = list(lengths.by_length(texts, self.recipe.text.caption_groups))
        matched = [qformer.match(lengths.chosen(images_PBND, at), some.ids_BT, some.mask_BT) for at, some in groups]
        logits = _exact(lengths.in_order([at for at, _ in groups], matched))
        return matching.matching(logits.view(matching.PAIRS, -1, 2), batch.valid_B, wrong.there_B)

    @torch.no_grad()
    def _draw(self, batch: Batch, crowd: Crowd, pool: memory.Candidates, peers: Peers) -> matching.Negatives:
        """Hard negatives, from this micro-batch and those that are remembered."""
        to_text_BC, to_image_BC = crowd.to_text_BG, crowd.to_image_BG
        if self.memory.size:
            mine = slice(peers.rank * len(batch.valid_B), (peers.rank + 1) * len(batch.valid_B))
            ours = crowd.images_GQJ[mine], crowd.texts_GJ[mine]
            both = contrast.similarity(*ours, pool.images_CQJ, pool.texts_CJ)
            temperature = contrast.bounded(_exact(self.temperature))
            to_text_BC, to_image_BC = (scores_BC / temperature for scores_BC in both)
        possible_BC = pool.valid_C & (batch.group_B[:, None] != pool.group_C)
        noise_2BC = matching.noise(self.recipe.seed, batch.position_B.tolist(), len(pool.valid_C))
        return matching.draw_negatives(to_text_BC, to_image_BC, possible_BC, noise_2BC.to(possible_BC.device))

    def _classify(self, batch: Batch, features_BND: Tensor) -> Tensor:
        if batch.labels is None:
            raise BadConfig(f"the loss classify needs the labels {', '.join(self.recipe.labels)}: the batch has none")
        return classify.classify(
            self.label_heads,
            features_BND,
            batch.labels,
            weights=self.recipe.labels,
            valid_B=batch.valid_B,
            smoothing=self.recipe.label_smoothing,
        )

    def _language(self, batch: Batch, tokens_IQD: Tensor) -> language.LanguageLoss:
        rows = batch.rows if batch.rows is not None and len(batch.rows.ids_RT) else blank_rows(batch)
        hidden_RTD = self.model.hidden(rows, tokens_IQD, packed=self.recipe.text.layout in PACKED)
        head = there(self.model.llama, "llama").lm_head
        return language.language(head, hidden_RTD, rows, batch.valid_B, len(self.recipe.data))


def _check(model: VisualLanguageModel, recipe: Recipe, label_classes: Mapping[str, int]) -> None:
    losses = set(recipe.losses)
    if not losses or losses - set(LOSSES):
        raise BadConfig(f"losses must be some of {', '.join(LOSSES)}, not {', '.join(sorted(losses)) or 'nothing'}")
    if recipe.negative_memory and any(part.split(".")[0] == "vision" for part in recipe.learn):
        raise BadConfig("negativeMemory keeps features of a frozen ViT, but learn names vision")
    if losses - {"lm"} and recipe.images.cache == "tokens":
        raise BadConfig(f"cached tokens serve the loss lm alone, not {', '.join(sorted(losses - {'lm'}))}")
    if losses & {"itc", "itm"} and not model.config.retrieval:
        raise BadConfig("the losses itc and itm need a Q-Former with retrieval heads: this checkpoint's has none")
    if "itg" in losses and not (model.config.retrieval or model.config.qformer_reads_instruction):
        raise BadConfig("the loss itg needs a Q-Former with a text branch: this checkpoint's has none")
    if "classify" in losses and (not recipe.labels or set(recipe.labels) - set(label_classes)):
        missing = sorted(set(recipe.labels) - set(label_classes))
        raise BadConfig(f"the loss classify has no classes for its labels: {', '.join(missing) or 'none are named'}")


def _need(features: Tensor | None) -> Tensor:
    if features is None:
        raise BadConfig("this recipe's losses need pictures or cached features, but the batch has cached tokens")
    return features


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _gather_captions(captions: Captions, peers: Peers, widest: int | None = None) -> tuple[Captions, Captions]:
    """Own and all processes' captions, padded to one length: `widest`, or that of the longest."""
    length = captions.ids_BT.shape[1]
    if widest is None or length > widest:
        widest = int(peers.gather_plain(torch.tensor([length], device=captions.ids_BT.device)).max())

    def pad(x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, widest - length))

    own = Captions(pad(captions.ids_BT), pad(captions.mask_BT))
    return own, Captions(peers.gather_plain(own.ids_BT), peers.gather_plain(own.mask_BT))
