"""LoRA `instruct` at the 14B model's shape with random weights on one GPU: samples per second, MFU and peak memory.

    python -m benchmarks.instruct_13b [--batch 16] [--steps 12] [--compile] [--checkpoint-activations]
    python -m benchmarks.instruct_13b --shape small         the same code at a small shape, where there is no GPU

ViT-g (1408 wide, 39 layers, 224 px), a Q-Former with 32 queries, and LLaMA-13B (5120 wide, 40 layers), frozen but for
the Q-Former, the projection and LoRA of rank 16. A sample is one picture (32 visual tokens) and 98 text tokens, of
which the last 64 are learnt: 130 positions; samples are packed in rows. bfloat16 with float32 where the recipe has it.

MFU counts what the mathematics needs and nothing that is done twice: 2 operations a weight and position forward, 2 for
the gradients of what comes before, 2 more where the weight itself learns, and attention; the ViT forward alone; the
head at learnt positions. Recomputed layers do not count. Target: 45 % on an H200.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, replace

import torch
from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig, Blip2VisionConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from benchmarks import machine
from training import stages
from training.data.batch import Batch, Pictures, Rows
from training.distributed import World, spread
from training.flops import peak_flops
from training.learning import learnable
from training.lora import attach
from training.model import VisualLanguageModel
from training.objectives import Objectives
from training.optimizer import Optimization
from training.peers import Peers
from training.recipe import Compute, Recipe, Source
from ziya.checkpoint import CheckpointConfig
from ziya.model.preprocessing import Preprocessing
from ziya.model.qformer import QFormerModule

QUERIES, TEXT, LEARNT = 32, 98, 64
WARM = 3


@dataclass(frozen=True)
class Shape:
    """Widths and depths of ViT, Q-Former and LLaMA."""

    vision: tuple[int, int, int, int]  # width, MLP, layers, heads
    qformer: tuple[int, int, int]  # width, layers, heads
    llama: tuple[int, int, int, int]  # width, MLP, layers, heads
    vocabulary: int
    pixels: int = 224
    patch: int = 14


SHAPES = {
    "13b": Shape((1408, 6144, 39, 16), (768, 12, 12), (5120, 13824, 40, 40), 39424),
    "small": Shape((64, 128, 2, 4), (64, 2, 4), (128, 256, 2, 4), 1000),
}


def recipe(how: argparse.Namespace) -> Recipe:
    fixed = stages.instruct()
    assert fixed.lora is not None
    return replace(
        fixed,
        data=(Source("random"),),
        lora=replace(fixed.lora, dropout=0.0),
        optimizer=replace(fixed.optimizer, steps=how.steps, batch=how.batch, warmup_steps=1),
        compute=Compute(compile=how.compile, checkpoint_activations=how.checkpoint_activations),
    )


def model(shape: Shape, device: torch.device) -> VisualLanguageModel:
    """Random weights on the device, the frozen giants in bfloat16 from the start: in float32 they might not fit."""
    config = CheckpointConfig("random", QUERIES, shape.vision[0], shape.qformer[0], shape.llama[0], 2048)
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            vision, llama = Blip2VisionModel(_vision(shape)), LlamaForCausalLM(_llama(shape))
        finally:
            torch.set_default_dtype(before)
        qformer = QFormerModule(_qformer(shape), queries=QUERIES)
        projection = torch.nn.Linear(shape.qformer[0], shape.llama[0])
    return VisualLanguageModel(
        config,
        Preprocessing(shape.pixels),
        vision=vision,
        qformer=qformer,
        language_projection=projection,
        llama=llama,
    )


def _vision(shape: Shape) -> Blip2VisionConfig:
    width, mlp, layers, heads = shape.vision
    return Blip2VisionConfig(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=shape.pixels,
        patch_size=shape.patch,
        initializer_range=0.02,
        attn_implementation="sdpa",
    )


def _qformer(shape: Shape) -> Blip2QFormerConfig:
    width, layers, heads = shape.qformer
    return Blip2QFormerConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        encoder_hidden_size=shape.vision[0],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )


def _llama(shape: Shape) -> LlamaConfig:
    width, mlp, layers, heads = shape.llama
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
        attn_implementation="sdpa",
    )


def batch(shape: Shape, samples: int, row_positions: int, device: torch.device) -> Batch:
    """Samples of equal length, as many a row as fit."""
    length = QUERIES + TEXT
    a_row = max(1, min(samples, row_positions // length))
    rows = -(-samples // a_row)
    size = (rows, a_row * length)
    sample_RT = torch.arange(rows * a_row, device=device).repeat_interleave(length).view(size)
    place_RT = torch.arange(length, device=device).repeat(a_row).expand(size)
    held_RT = sample_RT < samples
    visual_RT = torch.where((place_RT < QUERIES) & held_RT, sample_RT * QUERIES + place_RT, -1)
    zeros_RT = torch.zeros(size, dtype=torch.long, device=device)
    return Batch(
        step=0,
        micro=0,
        first=0,
        total=samples,
        source_B=torch.zeros(samples, dtype=torch.long, device=device),
        position_B=torch.arange(samples, device=device),
        valid_B=torch.ones(samples, dtype=torch.bool, device=device),
        group_B=torch.arange(samples, device=device),
        pictures=Pictures(torch.randn(samples, 3, shape.pixels, shape.pixels, device=device)),
        rows=Rows(
            ids_RT=torch.randint(3, shape.vocabulary, size, device=device),
            visual_RT=visual_RT,
            position_RT=place_RT.contiguous(),
            segment_RT=torch.where(held_RT, 1 + sample_RT % a_row, 0),
            learnt_RT=(place_RT >= length - LEARNT) & held_RT,
            source_RT=zeros_RT,
            sample_RT=torch.where(held_RT, sample_RT, 0),
        ),
    )


def needed(shape: Shape, lora_weights: int) -> float:
    """Operations of one sample, forward and backward, by the closed form above."""
    patches = (shape.pixels // shape.patch) ** 2 + 1
    width, mlp, layers, _ = shape.vision
    vision = patches * layers * (2 * (4 * width**2 + 2 * width * mlp) + 4 * patches * width)
    width, layers, _ = shape.qformer
    # Queries: their own attention, MLP, and in every second layer cross-attention, whose keys come from the patches.
    own = QUERIES * layers * (2 * (4 * width**2 + 8 * width**2) + 4 * QUERIES * width)
    crossed = (layers // 2) * (
        2 * QUERIES * 2 * width**2 + 2 * patches * 2 * shape.vision[0] * width + 4 * QUERIES * patches * width
    )
    width, mlp, layers, _ = shape.llama
    positions = QUERIES + TEXT
    # Attention is causal: half of the square.
    frozen = positions * layers * (2 * (4 * width**2 + 3 * width * mlp) + 2 * positions * width)
    head = LEARNT * 2 * width * shape.vocabulary
    adapters = positions * 2 * lora_weights
    projected = QUERIES * 2 * shape.qformer[0] * width
    return vision + 3 * (own + crossed + adapters + projected) + 2 * (frozen + head)


def measure(how: argparse.Namespace, device: torch.device) -> list[list[str]]:
    shape, settings = SHAPES[how.shape], recipe(how)
    torch.manual_seed(0)
    network = model(shape, device)
    assert network.llama is not None
    assert settings.lora is not None
    attach(network.llama, settings.lora, settings.seed)
    objectives = Objectives(network, settings, {}).to(device)
    groups = learnable(objectives, settings)
    for weight in objectives.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    module = spread(objectives, objectives.blocks(), settings.compute, World(device=device))
    optimization = Optimization(objectives, groups, settings.optimizer)
    work = batch(shape, how.batch, settings.text.row_positions, device)
    seconds = []
    for step in range(how.steps):
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            losses = module(work, Peers())
        torch.autograd.backward(losses.sums["lm"] / (how.batch * LEARNT))
        optimization.step(step)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    lora_weights = sum(w.numel() for name, w in objectives.named_parameters() if ".lora_" in name)
    step_seconds = statistics.median(seconds[WARM:])
    peak = peak_flops(device, torch.bfloat16)
    rate = needed(shape, lora_weights) * how.batch / step_seconds
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device.type == "cuda" else "-"
    return [
        ["step, median", f"{step_seconds:.3f} s"],
        ["samples/s", f"{how.batch / step_seconds:.1f}"],
        ["operations/s that the mathematics needs", f"{rate / 1e12:.3f} T"],
        ["MFU", f"{rate / peak:.1%}" if peak else "unknown peak"],
        ["peak memory", memory],
        ["loss after the last step, of the same batch", f"{losses.sums['lm'].item() / (how.batch * LEARNT):.3f}"],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="13b")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpoint-activations", action="store_true")
    how = parser.parse_args()
    print(machine.describe(), flush=True)
    if how.shape == "13b" and not torch.cuda.is_available():
        print("\nLoRA instruct at 13B shape was not measured: there is no GPU here (--shape small runs the same code).")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else machine.processor()
    print(f"\n{machine.table([f'{how.shape}, batch {how.batch}, {name}', ''], measure(how, device))}")


if __name__ == "__main__":
    main()
