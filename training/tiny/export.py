"""Step `export`: what was learnt becomes a checkpoint folder that serving loads.

Weights are the running means, in bfloat16. The folder is written by the same function as any other
checkpoint; the model card, the credits and a few example pictures are laid beside its parts.
"""

import torch
from torch import Tensor

from training.tiny import align, card, examples, vision
from training.tiny.augment import MEAN, STD
from training.tiny.emoji import EmojiData
from training.tiny.model import Speaker
from training.tiny.optimizer import MasterAdamW
from training.tiny.progress import load_state
from training.tiny.recipe import Recipe
from ziya.checkpoint import CheckpointConfig, GenerationDefaults
from ziya.model.preprocessing import Preprocessing
from ziya.model.weights import LlamaPart, QFormerPart, VisionPart, save_checkpoint

NAME = "ziya-tiny"
MEANINGLESS = (
    "_name_or_path",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
)


def config(recipe: Recipe) -> CheckpointConfig:
    return CheckpointConfig(
        name=NAME,
        queries=recipe.qformer.queries,
        vision_width=recipe.vision.width,
        qformer_width=recipe.qformer.width,
        llm_width=recipe.language.width,
        context_length=recipe.language.context,
        # So small a model only gets worse by sampling.
        generation=GenerationDefaults(max_tokens=64, temperature=0.0, top_p=1.0),
    )


def load_speaker(data: EmojiData, recipe: Recipe) -> Speaker:
    """The trained Q-Former, projection and LLaMA, with the running mean of their weights."""
    path = recipe.places.state("align")
    state = load_state(path)
    if state is None:
        raise FileNotFoundError(f"{path}: run the step `align` first")
    speaker = align.build_speaker(data, recipe, sum(concept.seen for concept in data.concepts))
    optimizer = MasterAdamW(speaker, recipe.language.train, recipe.language.rates)
    optimizer.restore(state)
    optimizer.load_means()
    return speaker.eval()


def export(data: EmojiData, recipe: Recipe) -> None:
    folder = recipe.places.checkpoint
    vit = vision.load_encoder(data, recipe).vit
    speaker = load_speaker(data, recipe)
    save_checkpoint(
        folder,
        config=config(recipe),
        vision=VisionPart(_plain(vit.config.to_dict()), _bf16(vit.state_dict()), _preprocessing(recipe)),
        qformer=QFormerPart(_plain(speaker.visual.config.to_dict()), _bf16(speaker.visual.state_dict())),
        llama=_llama_part(speaker, recipe),
    )
    examples.write(data, folder / "examples")
    card.write(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"export: {folder} ({size / 1e6:.1f} MB)", flush=True)


def _llama_part(speaker: Speaker, recipe: Recipe) -> LlamaPart:
    build = recipe.places.build
    tensors = _bf16(speaker.llama.state_dict())
    tensors.pop("lm_head.weight")  # tied to the embeddings
    projection = speaker.language_projection.state_dict(prefix="language_projection.")
    return LlamaPart(
        config=_plain(speaker.llama.config.to_dict()),
        tensors=tensors,
        projection=_bf16(projection),
        tokenizer=(build / "tokenizer.json").read_text(encoding="utf-8"),
        files={"tokenizer.model": (build / "tokenizer.model").read_bytes()},
    )


def _preprocessing(recipe: Recipe) -> Preprocessing:
    return Preprocessing(recipe.vision.image_px, MEAN, STD)


def _bf16(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}


def _plain(raw: dict[str, object]) -> dict[str, object]:
    """A config without empty fields and what has no meaning for a part of a model."""
    return {name: value for name, value in raw.items() if name not in MEANINGLESS and value is not None}
