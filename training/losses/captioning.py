"""ITG, captions written from the queries, as in BLIP-2: the Q-Former as a decoder.

Queries see the image and one another; a text token sees the queries and the text before it. Because the queries do
not see the text, what they give in this pass is what they give alone, and ITC takes its image side from it.
Legend: B samples, Q queries, T text tokens, D Q-Former width, N patch features, V vision width, K learnt tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, linear

from training.data.batch import Captions
from ziya.model.qformer import QFormerModule

START_TOKEN = "[DEC]"


class CaptionHead(nn.Module):
    """BERT's language-model head; its last matrix is the word embeddings, which it does not own."""

    def __init__(self, width: int, vocabulary: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, hidden_KD: Tensor, words_VD: Tensor) -> Tensor:
        return linear(self.norm(gelu(self.dense(hidden_KD))), words_VD, self.bias)


def decoder_mask(queries: int, mask_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive [B, 1, Q + T, Q + T]: a float mask of 4 dimensions is the one form that every attention reads right."""
    size, length = mask_BT.shape
    seen = torch.zeros(size, queries + length, queries + length, dtype=torch.bool, device=mask_BT.device)
    seen[:, :, :queries] = True
    seen[:, queries:, queries:] = mask_BT.bool()[:, None, :].expand(-1, length, -1).tril()
    added = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return added.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)


def decode(
    qformer: QFormerModule, features_BNV: Tensor, captions: Captions, start: int | None
) -> tuple[Tensor, Tensor]:
    """Outputs at the queries [B, Q, D] and at the text [B, T, D]. `start` takes the place of each first token."""
    queries_BQD = qformer.query_tokens.expand(len(features_BNV), -1, -1)
    count = queries_BQD.shape[1]
    ids_BT = captions.ids_BT
    if start is not None:
        ids_BT = torch.cat([torch.full_like(ids_BT[:, :1], start), ids_BT[:, 1:]], dim=1)
    both = qformer.embeddings(input_ids=ids_BT, query_embeds=queries_BQD)
    hidden = qformer.qformer(
        query_embeds=both,
        query_length=count,
        attention_mask=decoder_mask(count, captions.mask_BT, both.dtype),
        encoder_hidden_states=features_BNV,
    ).last_hidden_state
    return hidden[:, :count], hidden[:, count:]


def predicted(captions: Captions, valid_B: Tensor) -> Tensor:
    """Which positions [B, T - 1] have a next token to predict."""
    return captions.mask_BT[:, 1:].bool() & valid_B[:, None]


def captioning(
    head: CaptionHead, words_VD: Tensor, text_BTD: Tensor, captions: Captions, valid_B: Tensor, *, smoothing: float
) -> Tensor:
    """Summed cross-entropy of the next tokens; the head sees only the positions that count."""
    chosen = predicted(captions, valid_B)
    logits_KV = head(text_BTD[:, :-1][chosen], words_VD)
    logits_KV = logits_KV if logits_KV.dtype == torch.float64 else logits_KV.float()
    return cross_entropy(logits_KV, captions.ids_BT[:, 1:][chosen], reduction="sum", label_smoothing=smoothing)
