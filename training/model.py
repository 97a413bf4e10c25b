"""The whole model as training sees it: ViT, Q-Former, projection and LLaMA, as modules whose weights can learn.

Legend: I images, S pixels a side, N features of width D from the ViT, Q visual tokens an image of width D from the
Q-Former, R rows of T positions. Parts that a recipe does not need are not loaded and are None.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaRotaryEmbedding

from training.data.batch import Captions, Rows
from training.data.rows import attention as row_mask
from training.errors import BadConfig
from training.losses.captioning import START_TOKEN
from training.recipe import PARTS, Recipe
from ziya.checkpoint import CheckpointConfig, read_config, verify_part
from ziya.instruction import load_instruction_tokenizer
from ziya.model import preprocessing as image_steps
from ziya.model.llama import load_llama
from ziya.model.preprocessing import Preprocessing
from ziya.model.qformer import QFormerModule, load_qformer
from ziya.model.vision import load_vision

M = TypeVar("M", bound=nn.Module)


class VisualLanguageModel(nn.Module):
    """`start_token` is the id of `[DEC]` in the Q-Former's tokenizer, None where it has none.

    A module none of whose weights learn stays in eval mode, whatever `train` is told: no dropout where nothing learns.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        preprocessing: Preprocessing,
        *,
        vision: Blip2VisionModel | None = None,
        qformer: QFormerModule | None = None,
        language_projection: nn.Linear | None = None,
        llama: LlamaForCausalLM | None = None,
        start_token: int | None = None,
    ) -> None:
        super().__init__()
        self.config, self.preprocessing, self.start_token = config, preprocessing, start_token
        self.vision = vision
        self.qformer = qformer
        self.language_projection = language_projection
        self.llama = llama

    @classmethod
    def load(cls, folder: Path, *, parts: Collection[str] = PARTS, attention: str = "sdpa") -> VisualLanguageModel:
        """Parts of the checkpoint `folder` in float32 and train mode (`parts_of`); llama and projection go together.

        Raises CheckpointError naming what is missing or foreign, BadConfig for a part there is not.
        """
        if unknown := sorted(set(parts) - set(PARTS)):
            raise BadConfig(f"there is no part {', '.join(unknown)} of the model, only {', '.join(PARTS)}")
        config = read_config(folder)
        steps = Preprocessing.read(folder / "vision" / image_steps.FILE_NAME)
        model = cls(config, steps)
        if "vision" in parts:
            model.vision, _ = load_vision(verify_part(folder, "vision", config), attention=attention)
        if "qformer" in parts:
            model.qformer = load_qformer(verify_part(folder, "qformer", config), config, attention=attention)
            if model.qformer.config.use_qformer_text_input:
                model.start_token = load_instruction_tokenizer(folder).token_to_id(START_TOKEN)
        if {"llama", "projection"} & set(parts):
            model.llama, model.language_projection = _load_llama(folder, attention)
        return model

    def train(self, mode: bool = True) -> VisualLanguageModel:
        super().train(mode)
        for part in self.children():
            _hold_still(part)
        return self

    def features(self, pixels_I3SS: Tensor) -> Tensor:
        """The ViT's output [I, N, D]; with gradient only where something in the ViT learns."""
        vision = there(self.vision, "vision")
        learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in vision.parameters())
        with torch.set_grad_enabled(learns):
            features_IND: Tensor = vision(pixel_values=pixels_I3SS).last_hidden_state
        return features_IND

    def tokens(self, features_IND: Tensor, instructions: Captions | None = None) -> Tensor:
        """The Q-Former's visual tokens [I, Q, D]; it sees `instructions`, one an image, where it reads them."""
        qformer = there(self.qformer, "qformer")
        learns = features_IND.requires_grad or any(weight.requires_grad for weight in qformer.parameters())
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            if instructions is None or not self.config.qformer_reads_instruction:
                return qformer.query(features_IND)
            return qformer.query(features_IND, instructions.ids_BT, instructions.mask_BT)

    def embed(self, rows: Rows, tokens_IQD: Tensor) -> Tensor:
        """What the LLaMA reads [R, T, D]: words, and projected visual tokens where the rows say so."""
        llama, projection = there(self.llama, "llama"), there(self.language_projection, "projection")
        words_RTD: Tensor = llama.get_input_embeddings()(rows.ids_RT)
        shown: Tensor = projection(tokens_IQD)
        place = (rows.visual_RT >= 0).nonzero(as_tuple=True)
        # Also with no visual token at all, so that the projection is part of the graph on every process.
        return words_RTD.index_put(place, shown.flatten(0, 1)[rows.visual_RT[place]].to(words_RTD.dtype))

    def hidden(self, rows: Rows, tokens_IQD: Tensor, *, packed: bool = True) -> Tensor:
        """The LLaMA's last hidden states [R, T, D].

        With `packed` False every row must hold one sample from its first position on: no mask is needed then, since
        padding comes last and is seen by padding alone, and attention takes its fastest path.
        """
        embeds_RTD = self.embed(rows, tokens_IQD)
        mask = row_mask(rows, embeds_RTD.dtype) if packed else None
        hidden_RTD: Tensor = (
            there(self.llama, "llama")
            .model(
                inputs_embeds=embeds_RTD,
                attention_mask=mask,
                position_ids=rows.position_RT if packed else None,
                use_cache=False,
            )
            .last_hidden_state
        )
        return hidden_RTD


def parts_of(recipe: Recipe) -> frozenset[str]:
    """The parts of the model that the recipe's losses run through, given what is cached."""
    losses, parts = set(recipe.losses), set()
    if recipe.images.cache == "none":
        parts.add("vision")
    if losses - {"classify"} and recipe.images.cache != "tokens":
        parts.add("qformer")
    if "lm" in losses:
        parts |= {"projection", "llama"}
    return frozenset(parts)


def there(part: M | None, name: str) -> M:
    """`part`, which must have been loaded. Raises BadConfig naming it when it was not."""
    if part is None:
        raise BadConfig(f"this run needs the model's part {name!r}, which was not loaded")
    return part


def _hold_still(module: nn.Module) -> None:
    weights = list(module.parameters())
    if weights and not any(weight.requires_grad for weight in weights):
        module.eval()
        return
    for child in module.children():
        _hold_still(child)


def _load_llama(folder: Path, attention: str) -> tuple[LlamaForCausalLM, nn.Linear]:
    weights = load_llama(folder)
    raw = json.loads((folder / "llama" / "config.json").read_text("utf-8"))
    with torch.device("meta"):
        llama = LlamaForCausalLM(LlamaConfig.from_dict(raw, attn_implementation=attention))
        projection = nn.Linear(weights.config.qformer_width, weights.config.llm_width)
    llama.load_state_dict(weights.tensors, assign=True)
    llama.tie_weights()
    # Its table is a buffer that is not saved, and so is still on the meta device.
    llama.model.rotary_emb = LlamaRotaryEmbedding(config=llama.config)
    projection.load_state_dict({"weight": weights.projection_weight, "bias": weights.projection_bias}, assign=True)
    return llama.train(), projection
