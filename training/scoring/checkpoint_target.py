"""A checkpoint folder that answers in this process: pictures go the road of served ones, answers are greedy, float32.

Prompts are rendered and tokenised by `ziya.prompt`, as serving does. Legend: I images, N and D features, V visual
tokens of a prompt.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.answers import Prompt, answers
from training.data.batch import to_device
from training.data.captions import Captioner
from training.data.pixels import PixelSource
from training.errors import BadSample
from training.model import VisualLanguageModel
from training.recipe import PARTS, Images
from training.scoring.ask import Ask
from training.scoring.store import BAD_PICTURE, Said
from ziya.checkpoint import read_config
from ziya.instruction import load_instruction_tokenizer
from ziya.prompt import Turn, render, tokenize

BATCH = 64


@dataclass(frozen=True)
class CheckpointTarget:
    """Made by `load`. `identity` is what decides its answers."""

    name: str
    identity: Mapping[str, object]
    model: VisualLanguageModel
    tokenizer: Tokenizer
    captioner: Captioner | None
    device: torch.device
    max_tokens: int

    @classmethod
    def load(cls, folder: Path, max_tokens: int, device: str | None = None, *, speaks: bool = True) -> CheckpointTarget:
        """`speaks` False leaves out the LLaMA, which retrieval does not need. Raises CheckpointError."""
        config = read_config(folder)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = VisualLanguageModel.load(folder, parts=PARTS if speaks else ("vision", "qformer")).to(where).eval()
        reads = config.qformer_reads_instruction
        return cls(
            config.name,
            identity(folder) | {"max_tokens": max_tokens},
            model,
            Tokenizer.from_file(str(folder / "llama" / "tokenizer.json")),
            Captioner(load_instruction_tokenizer(folder), 32) if reads else None,
            where,
            max_tokens,
        )

    async def answers(self, asks: Sequence[Ask]) -> AsyncGenerator[tuple[Ask, Said], None]:
        """In batches; a picture that cannot be decoded gives a failed answer."""
        for start in range(0, len(asks), BATCH):
            # Other tasks of the process, such as a progress bar's, have their turn.
            await asyncio.sleep(0)
            for pair in self._batch(asks[start : start + BATCH]):
                yield pair

    @torch.inference_mode()
    def _batch(self, asks: Sequence[Ask]) -> Iterator[tuple[Ask, Said]]:
        shown = [ask.pictures() for ask in asks]
        features, wrong = self._features(shown)
        usable: list[tuple[Ask, Sequence[bytes]]] = []
        for ask, pictures in zip(asks, shown, strict=True):
            if bad := next((wrong[picture] for picture in pictures if picture in wrong), None):
                yield ask, Said("", f"{BAD_PICTURE}: {bad.reason}")
            else:
                usable.append((ask, pictures))
        if usable:
            prompts, tokens = [self._prompt(ask) for ask, _ in usable], self._tokens(usable, features)
            said = answers(self.model, prompts, tokens, max_tokens=self.max_tokens)
            for (ask, _), text in zip(usable, self.tokenizer.decode_batch(said), strict=True):
                yield ask, Said(text.strip())

    def _features(self, shown: Sequence[Sequence[bytes]]) -> tuple[dict[bytes, Tensor], dict[bytes, BadSample]]:
        """Of each different picture [N, D], and what is wrong with the others: many questions are about one picture."""
        files = list(dict.fromkeys(picture for pictures in shown for picture in pictures))
        source = PixelSource(self.model.preprocessing, Images(), 0, keep_bytes=0)
        pixels, found = source.pixels([("picture", file) for file in files], [0] * len(files))
        wrong = {file: bad for file, bad in zip(files, found, strict=True) if bad is not None}
        good = [place for place, file in enumerate(files) if file not in wrong]
        if not good:
            return {}, wrong
        features_IND = self.model.features(pixels[good].to(self.device))
        return {files[place]: one for place, one in zip(good, features_IND, strict=True)}, wrong

    def _tokens(self, asks: Sequence[tuple[Ask, Sequence[bytes]]], features: Mapping[bytes, Tensor]) -> list[Tensor]:
        """The visual tokens of each question's pictures, [V, width]."""
        counts = [len(pictures) for _, pictures in asks]
        if not sum(counts):
            return [torch.zeros(0, self.model.config.qformer_width)] * len(asks)
        instructions = None
        if self.captioner is not None:
            texts = [ask.item.question for ask, pictures in asks for _ in pictures]
            instructions = to_device(self.captioner.instructions(texts), self.device)
        every = self.model.tokens(torch.stack([features[one] for _, some in asks for one in some]), instructions)
        return [one.flatten(0, 1) for one in torch.split(every, counts)]

    def _prompt(self, ask: Ask) -> Prompt:
        config, count = self.model.config, len(ask.item.pictures)
        rendered = render([Turn("user", ask.item.question, tuple(range(count)))], config.prompt)
        ids: list[int] = []
        visual: list[int] = []
        for number, text in enumerate(tokenize(self.tokenizer, rendered.texts)):
            if number:
                first = (number - 1) * config.queries
                ids += [0] * config.queries
                visual += range(first, first + config.queries)
            ids += text
            visual += [-1] * len(text)
        return Prompt(ids, visual)


def identity(folder: Path) -> dict[str, object]:
    """What names a checkpoint's answers: its config.json, which holds the fingerprints of all parts."""
    read_config(folder)
    digest = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    return {"checkpoint": digest, "precision": "float32"}
