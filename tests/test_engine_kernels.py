"""The compiled forward pass: transformers' logits, in every kind of number, and the same bits whatever goes beside."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from services.llama.engine import kernels
from services.llama.engine.batch import AdapterRows, Batch
from services.llama.engine.cpu import SITES, CpuLlama
from services.llama.engine.kv_cache import KVCache
from services.llama.engine.lora import LoraAdapter, LowRank
from services.llama.engine.models import choose_model
from tests.tiny import build_checkpoint
from ziya.model.llama import load_llama
from ziya.settings import SettingsError

LENGTHS = (37, 1, 64)
BLOCKS_EACH = 8
Numbers = tuple[torch.dtype, str]
NUMBERS = pytest.mark.parametrize(
    "numbers",
    [(torch.float32, "none"), (torch.bfloat16, "none"), (torch.bfloat16, "int8"), (torch.bfloat16, "int4")],
    ids=["float32", "bfloat16", "int8", "int4"],
)


@pytest.fixture(scope="module", params=["grouped, untied", "plain, tied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    grouped = request.param.startswith("grouped")
    return build_checkpoint(tmp_path_factory.mktemp("c") / "c", tied=not grouped, kv_heads=2 if grouped else 4, seed=3)


@pytest.fixture
def texts() -> list[Tensor]:
    rng = random.Random(1)
    return [torch.tensor([rng.randrange(3, 290) for _ in range(length)]) for length in LENGTHS]


@dataclass
class Run:
    """A model, its cache, and blocks for each text in an order of chance."""

    model: CpuLlama
    cache: KVCache
    tables: np.ndarray

    def step(
        self,
        texts: dict[int, Tensor],
        past: dict[int, int],
        adapters: tuple[AdapterRows, ...] = (),
        wanted: list[int] | None = None,
    ) -> Tensor:
        """Logits of the last `wanted` rows of each of `texts`, or of all, each after `past` positions."""
        starts = np.cumsum([0, *map(len, texts.values())]).astype(np.int32)
        lengths = np.array([past[number] + len(text) for number, text in texts.items()], np.int32)
        tables = np.ascontiguousarray(self.tables[list(texts)])
        hidden = self.model.embed(torch.cat(list(texts.values())))
        wanted_B = None if wanted is None else np.array(wanted, np.int32)
        batch = Batch(hidden, starts, lengths, tables, adapters, wanted_B)
        return self.model.logits(self.model.forward(batch, self.cache))


class RunOn(Protocol):
    """Makes a run with the library for one set of instructions."""

    def __call__(
        self, checkpoint: Path, dtype: torch.dtype = torch.float32, *, threads: int = 2, quantise: str = "none"
    ) -> Run: ...


@pytest.fixture(params=kernels.INSTRUCTIONS)
def run_on(request: pytest.FixtureRequest) -> RunOn:
    library = kernels.libraries().get(request.param)
    if library is None:
        pytest.skip(f"not built, or a processor without {request.param}")

    def run(checkpoint: Path, dtype: torch.dtype = torch.float32, *, threads: int = 2, quantise: str = "none") -> Run:
        model = CpuLlama(load_llama(checkpoint, dtype=dtype), 512, threads, quantise, library)
        blocks = random.Random(0).sample(range(64), len(LENGTHS) * BLOCKS_EACH)
        return Run(model, model.new_cache(64), np.array(blocks, np.int32).reshape(len(LENGTHS), BLOCKS_EACH))

    return run


def reference(checkpoint: Path, text: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    model = LlamaForCausalLM.from_pretrained(checkpoint / "llama", dtype=dtype).eval()
    with torch.inference_mode():
        logits: Tensor = model(text[None]).logits[0]
    return logits.float()


def whole(run: Run, texts: list[Tensor]) -> list[Tensor]:
    lengths = [len(text) for text in texts]
    return list(run.step(dict(enumerate(texts)), dict.fromkeys(range(len(texts)), 0)).split(lengths))


def test_logits_are_transformers(run_on: RunOn, checkpoint: Path, texts: list[Tensor]) -> None:
    for text, logits in zip(texts, whole(run_on(checkpoint), texts), strict=True):
        torch.testing.assert_close(logits, reference(checkpoint, text), atol=1e-4, rtol=1e-4)


def test_bfloat16_is_no_further_off_than_transformers(run_on: RunOn, checkpoint: Path, texts: list[Tensor]) -> None:
    ours, exact = whole(run_on(checkpoint, torch.bfloat16), texts)[2], reference(checkpoint, texts[2])
    theirs = reference(checkpoint, texts[2], torch.bfloat16)
    assert (ours - exact).pow(2).mean() < (theirs - exact).pow(2).mean()


def test_int8_keeps_what_is_likeliest(run_on: RunOn, checkpoint: Path, texts: list[Tensor]) -> None:
    """On random weights: the error is within a tenth of the logits' spread, and the first choice is mostly kept."""
    ours, exact = whole(run_on(checkpoint, torch.bfloat16, quantise="int8"), texts)[2], reference(checkpoint, texts[2])
    assert (ours - exact).pow(2).mean().sqrt() < 0.1 * exact.std()
    assert (ours.argmax(-1) == exact.argmax(-1)).float().mean() > 0.85


def four_bit(weights: Tensor) -> Tensor:
    """Rounded to 16 values in each 64 inputs, whose largest becomes -8: by hand, what int4 is to compute with."""
    groups = weights.float().view(len(weights), -1, 64)
    scales = groups.gather(2, groups.abs().argmax(2, keepdim=True)) / -8
    return ((groups / scales).round().clamp(-8, 7) * scales).view(weights.shape)


def test_int4_is_transformers_on_the_rounded_weights(run_on: RunOn, checkpoint: Path, texts: list[Tensor]) -> None:
    """What is left is the error of 8-bit rows. Against the weights before rounding it is several times as large."""
    model = LlamaForCausalLM.from_pretrained(checkpoint / "llama", dtype=torch.float32).eval()
    with torch.inference_mode():
        for layer in model.model.layers:
            for _, _, name in SITES.values():
                weight = layer.get_submodule(name).weight
                weight.copy_(four_bit(weight.bfloat16()))
        exact = model(texts[2][None]).logits[0]
    ours = whole(run_on(checkpoint, torch.bfloat16, quantise="int4"), texts)[2]
    assert (ours - exact).pow(2).mean().sqrt() < 0.1 * exact.std()
    assert (ours - reference(checkpoint, texts[2])).pow(2).mean().sqrt() > 0.2 * exact.std()


@NUMBERS
def test_a_row_has_the_same_bits_whatever_goes_beside_it(
    run_on: RunOn, checkpoint: Path, texts: list[Tensor], numbers: Numbers
) -> None:
    """All at once, in chunks of chance among others, and row by row with another number of threads."""
    dtype, quantise = numbers
    together = whole(run_on(checkpoint, dtype, quantise=quantise), texts)
    alone = run_on(checkpoint, dtype, quantise=quantise, threads=1)
    for past, row in enumerate(texts[2]):
        assert torch.equal(alone.step({2: row[None]}, {2: past})[0], together[2][past])
    crowd, done, rng = (
        run_on(checkpoint, dtype, quantise=quantise, threads=3),
        dict.fromkeys(range(3), 0),
        random.Random(4),
    )
    while chunks := {
        n: text[done[n] : done[n] + rng.randint(1, 9)] for n, text in enumerate(texts) if done[n] < len(text)
    }:
        logits = crowd.step(chunks, done).split([len(chunk) for chunk in chunks.values()])
        for (number, chunk), rows in zip(chunks.items(), logits, strict=True):
            assert torch.equal(rows, together[number][done[number] : done[number] + len(chunk)])
            done[number] += len(chunk)


def random_adapter(checkpoint: Path, name: str, seed: int, dtype: torch.dtype) -> LoraAdapter:
    """Of every projection, rank 5, large enough to be seen."""
    tensors = load_llama(checkpoint).tensors
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for number in range(2):
        shapes = {key: tensors[f"model.layers.{number}.{module}.weight"].shape for key, (_, _, module) in SITES.items()}
        layers.append({
            key: LowRank(
                (torch.randn(5, inputs, generator=generator) * 0.1).to(dtype),
                (torch.randn(outputs, 5, generator=generator) * 0.1).to(dtype),
                0.5,
            )
            for key, (outputs, inputs) in shapes.items()
        })  # fmt: skip
    return LoraAdapter(name, tuple(layers), name.encode())


# of each text in a step: from where to where, and of how many of these rows the logits are wanted
PIECES = ((0, 20, 0), (0, 1, 0), (0, 7, 0))
MIXED = ((20, 30, 0), (0, 1, 1), (7, 40, 4))  # a piece of a prompt, a row that decodes, one with guesses
ENDS = ((30, 37, 7), (0, 1, 0), (40, 64, 1))


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapters"])
@NUMBERS
def test_rows_nobody_asks_for_change_no_bit_of_the_others(
    run_on: RunOn, checkpoint: Path, texts: list[Tensor], numbers: Numbers, adapted: bool
) -> None:
    """Neither of those beside them nor of those that look back at their keys and values."""
    dtype, quantise = numbers
    first, last = (random_adapter(checkpoint, name, seed, dtype) for seed, name in enumerate("ab"))

    def step(run: Run, parts: tuple[tuple[int, int, int], ...]) -> Tensor:
        rows = np.cumsum([0, *(stop - start for start, stop, _ in parts)]).tolist()
        adapters = (AdapterRows(first, 0, rows[1]), AdapterRows(last, rows[2], rows[3])) if adapted else ()
        past = {number: start for number, (start, _, _) in enumerate(parts)}
        pieces = {number: texts[number][start:stop] for number, (start, stop, _) in enumerate(parts)}
        return run.step(pieces, past, adapters, [wanted for _, _, wanted in parts])

    everything = run_on(checkpoint, dtype, quantise=quantise)
    exact = step(everything, tuple((0, length, length) for length in LENGTHS)).split(list(LENGTHS))
    run = run_on(checkpoint, dtype, quantise=quantise, threads=3)
    for parts in (PIECES, MIXED, ENDS):
        asked = [exact[number][stop - wanted : stop] for number, (_, stop, wanted) in enumerate(parts)]
        assert torch.equal(step(run, parts), torch.cat(asked))


def merged(checkpoint: Path, adapter: LoraAdapter, text: Tensor) -> Tensor:
    """transformers with the adapter's product added to its weights."""
    model = LlamaForCausalLM.from_pretrained(checkpoint / "llama", dtype=torch.float32).eval()
    with torch.inference_mode():
        for number, layer in enumerate(adapter.layers):
            for key, change in layer.items():
                module = model.get_submodule(f"model.layers.{number}.{SITES[key][2]}")
                module.weight += change.scale * change.up.float() @ change.down.float()
        logits: Tensor = model(text[None]).logits[0]
    return logits


def test_adapters_of_a_step_change_their_own_rows_as_merged_weights_would(
    run_on: RunOn, checkpoint: Path, texts: list[Tensor]
) -> None:
    first, last = (random_adapter(checkpoint, name, seed, torch.float32) for seed, name in enumerate("ab"))
    rows = np.cumsum([0, *LENGTHS])
    ranges = (AdapterRows(first, int(rows[0]), int(rows[1])), AdapterRows(last, int(rows[2]), int(rows[3])))
    logits = run_on(checkpoint).step(dict(enumerate(texts)), dict.fromkeys(range(3), 0), ranges).split(list(LENGTHS))
    torch.testing.assert_close(logits[0], merged(checkpoint, first, texts[0]), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(logits[1], reference(checkpoint, texts[1]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[2], merged(checkpoint, last, texts[2]), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("quantise", "error"), [("none", 0.15), ("int8", 0.15), ("int4", 0.9)])
def test_adapters_go_with_smaller_weights(
    run_on: RunOn, checkpoint: Path, texts: list[Tensor], quantise: str, error: float
) -> None:
    adapter = random_adapter(checkpoint, "a", 1, torch.bfloat16)
    ours = run_on(checkpoint, torch.bfloat16, quantise=quantise).step(
        {2: texts[2]}, {2: 0}, (AdapterRows(adapter, 0, 64),)
    )
    exact = merged(checkpoint, adapter, texts[2])
    assert (exact - reference(checkpoint, texts[2])).pow(2).mean().sqrt() > 0.2 * exact.std()
    assert (ours - exact).pow(2).mean().sqrt() < error * exact.std()


def test_the_best_library_that_the_processor_has_instructions_for_is_taken() -> None:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    has = set(next((line for line in lines if line.startswith("flags")), "").split())
    needed = {
        "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16"},
        "avx2": {"avx2", "fma", "bmi1", "bmi2"},
    }
    built = [name for name in kernels.INSTRUCTIONS if kernels.path(name).is_file()]
    runnable = [name for name in built if needed[name] <= has]
    assert list(kernels.libraries()) == runnable
    assert kernels.library() is (kernels.libraries()[runnable[0]] if runnable else None)


def test_what_cannot_be_done_is_refused_by_its_setting(checkpoint: Path) -> None:
    half = load_llama(checkpoint, dtype=torch.float16)
    with pytest.raises(SettingsError, match="ZIYA_LLAMA_KERNELS"):
        choose_model(half, 512, kernels="compiled", quantise="none", threads=1, slots=1)
    with pytest.raises(SettingsError, match="ZIYA_LLAMA_QUANTISE"):
        choose_model(load_llama(checkpoint), 512, kernels="torch", quantise="int8", threads=1, slots=1)
