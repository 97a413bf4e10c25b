"""Q-Former, projection and LLaMA as one trainable module on top of the frozen encoder.

Plain Hugging Face classes, so that their tensors carry the names that serving loads. The concept head is
thrown away after training: it asks the queries to carry the identity of the thing from the first steps on.
Legend: B rows, V visual tokens of a row (Q a picture), D width, T positions.
"""

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, LlamaConfig, LlamaForCausalLM

from training.tiny.packing import TEXT, Rows
from training.tiny.recipe import Language, QFormer, Recipe
from ziya.model.qformer import QFormerModule


def qformer_config(how: QFormer, vision_width: int) -> Blip2QFormerConfig:
    return Blip2QFormerConfig(
        hidden_size=how.width,
        num_hidden_layers=how.layers,
        num_attention_heads=how.heads,
        intermediate_size=4 * how.width,
        cross_attention_frequency=how.cross_attention_frequency,
        encoder_hidden_size=vision_width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        use_qformer_text_input=False,
        attn_implementation="eager",
    )


def llama_config(how: Language) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=how.vocabulary,
        hidden_size=how.width,
        intermediate_size=how.intermediate,
        num_hidden_layers=how.layers,
        num_attention_heads=how.heads,
        max_position_embeddings=how.context,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )


class Speaker(nn.Module):
    """From encoder tokens to answers."""

    def __init__(self, recipe: Recipe, concepts: int) -> None:
        super().__init__()
        qformer, language = recipe.qformer, recipe.language
        config = qformer_config(qformer, recipe.vision.width)
        self.visual = QFormerModule(config, queries=qformer.queries)
        self.language_projection = nn.Linear(qformer.width, language.width)
        self.llama = LlamaForCausalLM(llama_config(language))
        self.concept_head = nn.Linear(qformer.width, concepts)
        nn.init.normal_(self.language_projection.weight, std=0.02)

    def embed(self, rows: Rows, visual_BVD: Tensor) -> Tensor:
        """Embeddings [B, T, D]: words, with the projected visual tokens at their places."""
        words_BTD: Tensor = self.llama.model.embed_tokens(rows.ids_BT)
        places = rows.visual_BT.clamp(min=0).unsqueeze(-1).expand(-1, -1, visual_BVD.shape[-1])
        is_visual = (rows.visual_BT != TEXT).unsqueeze(-1)
        return torch.where(is_visual, visual_BVD.gather(1, places), words_BTD)

    def forward(self, queries_BVD: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Scores of the next token at each learnt position, and the tokens that are right there."""
        embedded = self.embed(rows, self.language_projection(queries_BVD))
        hidden_BTD = self.llama.model(
            inputs_embeds=embedded,
            attention_mask=rows.attention(embedded.dtype),
            position_ids=rows.position_BT,
            use_cache=False,
        ).last_hidden_state
        is_next_learnt = rows.learnt_BT[:, 1:]
        scores: Tensor = self.llama.lm_head(hidden_BTD[:, :-1][is_next_learnt])
        return scores.float(), rows.ids_BT[:, 1:][is_next_learnt]


@torch.inference_mode()
def answer(
    llama: LlamaForCausalLM, prompt_ids: list[int], visual_BQD: Tensor, max_tokens: int, end: int
) -> list[list[int]]:
    """Greedy answers to one question about each of several pictures (visual tokens already projected)."""
    words = llama.model.embed_tokens(torch.tensor(prompt_ids)).expand(len(visual_BQD), -1, -1)
    output = llama(inputs_embeds=torch.cat([visual_BQD, words], 1), use_cache=True, logits_to_keep=1)
    chosen: list[Tensor] = [output.logits[:, -1].argmax(-1)]
    done_B = chosen[0] == end
    while len(chosen) < max_tokens and not bool(done_B.all()):
        output = llama(input_ids=chosen[-1][:, None], past_key_values=output.past_key_values, use_cache=True)
        chosen.append(output.logits[:, -1].argmax(-1))
        done_B = done_B | (chosen[-1] == end)
    answers: list[list[int]] = torch.stack(chosen, 1).tolist()
    return [ids[: ids.index(end)] if end in ids else ids for ids in answers]
