"""The Q-Former: patch features in, a few visual tokens out; with a text branch also instructions and retrieval.

Shapes: B images, N patch features of width V, Q queries and T text tokens of width D. Three wirings, told
by the checkpoint:

    plain               queries attend to the image (Ziya release A, BLIP-2)
    reads_instruction   the instruction's tokens stand behind the queries in self-attention; only the Q query
                        outputs leave (Ziya release B, InstructBLIP)
    retrieval           image and text embeddings (ITC) and a matching head over queries and text (ITM)

`QFormerModule` is the torch module, with Hugging Face's names; training uses it too. `QFormer` is it behind numpy.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2TextEmbeddings

from ziya.checkpoint import CheckpointConfig, CheckpointError, read_config, verify_part
from ziya.instruction import instruction_ids, load_instruction_tokenizer
from ziya.model.layout import QFormerShape, qformer_table
from ziya.model.tensors import read
from ziya.model.weights import check_qformer


class QFormerModule(nn.Module):
    """Query tokens, Q-Former, and where the config has them text embeddings and ITC/ITM heads.

    `state_dict()` is exactly qformer/model.safetensors. Fresh query tokens are N(0, 0.02): transformers' zeros
    would leave all queries alike for ever. Fresh word and position embeddings are BERT's N(0, 0.02) too: torch's
    N(0, 1) would start captioning, whose head they are, at a loss of 50.
    """

    def __init__(self, config: Blip2QFormerConfig, *, queries: int, retrieval: bool = False) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.retrieval = retrieval
        self.query_tokens = nn.Parameter(torch.randn(1, queries, width) * 0.02)
        self.qformer = Blip2QFormerModel(config)
        if config.use_qformer_text_input:
            self.embeddings = Blip2TextEmbeddings(config)
            for fresh in (self.embeddings.word_embeddings, self.embeddings.position_embeddings):
                fresh.weight.data.mul_(0.02)
        if retrieval:
            joint = getattr(config, "image_text_hidden_size", QFormerShape.image_text_hidden_size)
            self.vision_projection = nn.Linear(width, joint)
            self.text_projection = nn.Linear(width, joint)
            self.itm_head = nn.Linear(width, 2)

    def query(self, features_BNV: Tensor, ids_BT: Tensor | None = None, mask_BT: Tensor | None = None) -> Tensor:
        """Visual tokens [B, Q, D]; with text the queries see it (`mask_BT` is 1 where there is a token)."""
        queries = self.query_tokens.expand(len(features_BNV), -1, -1)
        count = queries.shape[1]
        if ids_BT is None:
            output: Tensor = self.qformer(query_embeds=queries, encoder_hidden_states=features_BNV).last_hidden_state
            return output
        if mask_BT is None:
            mask_BT = torch.ones_like(ids_BT)
        both = self.qformer(
            query_embeds=self.embeddings(input_ids=ids_BT, query_embeds=queries),
            query_length=count,
            attention_mask=torch.cat([mask_BT.new_ones(len(ids_BT), count), mask_BT], dim=1),
            encoder_hidden_states=features_BNV,
        ).last_hidden_state
        output = both[:, :count]
        return output

    def embed_image(self, features_BNV: Tensor) -> Tensor:
        """Unit vectors [B, Q, joint width]: the similarity to a text is the best of the Q."""
        return normalize(self.vision_projection(self.query(features_BNV)), dim=-1)

    def embed_text(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Unit vectors [B, joint width], from the first text token, without any image."""
        text = self.qformer(
            query_embeds=self.embeddings(input_ids=ids_BT), query_length=0, attention_mask=mask_BT
        ).last_hidden_state
        return normalize(self.text_projection(text[:, 0]), dim=-1)

    def match(self, features_BNV: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Matching logits [B, 2], mean over the queries; index 1 is "they match"."""
        logits: Tensor = self.itm_head(self.query(features_BNV, ids_BT, mask_BT)).mean(dim=1)
        return logits


class QFormer:
    """A loaded Q-Former behind numpy; safe to call from one thread at a time."""

    def __init__(self, module: QFormerModule, config: CheckpointConfig, fingerprint: str, folder: Path) -> None:
        self.config = config
        self.fingerprint = fingerprint
        self._module = module
        self._dtype, self._device = module.query_tokens.dtype, module.query_tokens.device
        reads_text = module.config.use_qformer_text_input
        self._tokenizer = load_instruction_tokenizer(folder) if reads_text else None

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        attention: str = "sdpa",
    ) -> QFormer:
        """Loads qformer/ of a checkpoint folder. Raises CheckpointError naming what is wrong with it."""
        config = read_config(folder)
        part = verify_part(folder, "qformer", config)
        module = load_qformer(part, config, dtype=dtype, device=device, attention=attention)
        return cls(module.eval(), config, config.fingerprints["qformer"], folder)

    @property
    def reads_instruction(self) -> bool:
        """Whether the visual tokens depend on the question."""
        return self.config.qformer_reads_instruction

    @property
    def retrieval(self) -> bool:
        """Whether `embed_image`, `embed_text` and `match` can be used."""
        return self.config.retrieval

    def tokenize(self, text: str) -> list[int]:
        """Ids of an instruction or caption. Raises ValueError when the Q-Former reads no text."""
        if self._tokenizer is None:
            raise ValueError("this checkpoint's Q-Former reads no text")
        return instruction_ids(self._tokenizer, text)

    @torch.inference_mode()
    def __call__(
        self, features_BNV: NDArray[np.floating[Any]], instruction_ids: Sequence[Sequence[int]] | None = None
    ) -> NDArray[np.float16]:
        """float [B, N, V] and, if the Q-Former reads it, one instruction an image -> float16 [B, Q, D]."""
        if not self.reads_instruction:
            return _half(self._module.query(self._features(features_BNV)))
        if instruction_ids is None or len(instruction_ids) != len(features_BNV):
            raise ValueError("this checkpoint's Q-Former reads the instruction: give one a picture")
        return _half(self._module.query(self._features(features_BNV), *self._text(instruction_ids)))

    @torch.inference_mode()
    def embed_image(self, features_BNV: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """float [B, N, V] -> float32 unit vectors [B, Q, joint width]."""
        self._need_retrieval()
        return _single(self._module.embed_image(self._features(features_BNV)))

    @torch.inference_mode()
    def embed_text(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Token ids of B texts -> float32 unit vectors [B, joint width]."""
        self._need_retrieval()
        return _single(self._module.embed_text(*self._text(ids)))

    @torch.inference_mode()
    def match(self, features_BNV: NDArray[np.floating[Any]], ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Pairs of picture and text -> float32 logits [B, 2]; index 1 is "they match"."""
        self._need_retrieval()
        return _single(self._module.match(self._features(features_BNV), *self._text(ids)))

    def _need_retrieval(self) -> None:
        if not self.retrieval:
            raise ValueError("this checkpoint has no retrieval heads")

    def _features(self, features_BNV: NDArray[np.floating[Any]]) -> Tensor:
        if features_BNV.ndim != 3 or features_BNV.shape[2] != self.config.vision_width:
            raise ValueError(
                f"features must be [batch, patches, {self.config.vision_width}], not {list(features_BNV.shape)}"
            )
        return torch.from_numpy(features_BNV.astype(np.float32)).to(self._device, self._dtype)

    def _text(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Right-padded ids and their mask, both [B, T]."""
        if not rows or not all(rows):
            raise ValueError("every text needs at least one token")
        shape = (len(rows), max(map(len, rows)))
        ids = torch.full(shape, self._module.config.pad_token_id or 0, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[number, : len(row)] = 1
        return ids.to(self._device), mask.to(self._device)


def load_qformer(
    part: Path,
    config: CheckpointConfig,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attention: str = "sdpa",
) -> QFormerModule:
    """The module in a qformer/ folder, in train mode, without the fingerprint check; for training and conversion."""
    path = part / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    raw = json.loads(path.read_text("utf-8"))
    shape = QFormerShape.of(raw)
    check_qformer(shape, config, str(part))
    table = qformer_table(shape, queries=config.queries, retrieval=config.retrieval)
    tensors = read(part, table, dtype=dtype, device=device)
    with torch.device("meta"):
        settings = Blip2QFormerConfig.from_dict(raw, attn_implementation=attention)
        module = QFormerModule(settings, queries=config.queries, retrieval=config.retrieval)
    module.load_state_dict(tensors, assign=True)
    if shape.use_qformer_text_input:
        # A buffer that is not saved, and so is still on the meta device.
        positions = torch.arange(shape.max_position_embeddings, device=device).expand((1, -1))
        module.embeddings.register_buffer("position_ids", positions, persistent=False)
    return module.train()


def _half(tensor: Tensor) -> NDArray[np.float16]:
    array: NDArray[np.float16] = tensor.to("cpu", torch.float16).numpy()
    return array


def _single(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.to("cpu", torch.float32).numpy()
    return array
