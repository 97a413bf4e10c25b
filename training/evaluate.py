"""What a stage's model can do, on held-out data: retrieval, and exact answers to a task's first question.

Pictures and questions go the road of served ones. Of several processes each encodes and answers its share, and all end
with the same numbers. A record that cannot be used is left out, and the share of those is a metric, `bad`, where there
are any.
Legend: I images of a record, N and D features, V visual tokens of a record.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from training.answers import Prompt, answers, is_right
from training.data.batch import to_device
from training.data.captions import Captioner
from training.data.record import Conversation, Record
from training.data.rows import Encoder
from training.data.shards import Dataset
from training.data.tasks import caption_text
from training.distributed import World
from training.errors import BadConfig, BadData, BadSample
from training.heldout import BATCH, HeldOut, Item, Share
from training.model import VisualLanguageModel, there
from training.recipe import Check
from training.retrieval import Beat, retrieval, unheard
from training.stage_folder import write_json
from training.truths import First, asked

MAX_ANSWER = 64


@dataclass(frozen=True)
class _Question:
    """One record as it is asked. `texts` are what a Q-Former that reads the instruction reads, one an image."""

    prompt: Prompt
    truths: Sequence[str]
    features_IND: Tensor
    texts: Sequence[str]


@dataclass(frozen=True)
class LabelHeads:
    """What the loss `classify` learns labels with: a head a label on the mean of the ViT's output, and its classes."""

    heads: nn.ModuleDict
    classes: Mapping[str, Mapping[str, int]]


@dataclass
class Examiner:
    """Runs `checks` on `model`, whose modules must all be loaded. `datasets` are by the checks' `data`.

    `temperature` tells ITC's where it learns; without it the checkpoint's holds. `beat` hears that something is being
    done, many times a check.
    """

    model: VisualLanguageModel
    checks: Sequence[Check]
    datasets: Mapping[str, Dataset]
    world: World
    tokenizer: Tokenizer | None = None
    encoder: Encoder | None = None
    captioner: Captioner | None = None
    labels: LabelHeads | None = None
    temperature: Callable[[], float] | None = None
    beat: Beat = unheard
    _held_out: HeldOut = field(init=False)

    def __post_init__(self) -> None:
        self._held_out = HeldOut(self.model, self.datasets, self.world)

    @torch.no_grad()
    def __call__(self, *, keep_features: bool = False) -> dict[str, float]:
        """Metrics by `<check>.<metric>`. `keep_features` where the ViT is frozen: they are then computed once.

        Raises BadConfig when the model has no heads for a check, BadData when none of a check's records can be used.
        """
        if not keep_features:
            self._held_out.forget()
        found: dict[str, float] = {}
        with in_eval_mode(self.model):
            for name, check in zip(check_names(self.checks), self.checks, strict=True):
                self.beat(f"checking {name}")
                share = self._held_out.share(check, self.beat)
                examine = {"retrieval": self._retrieval, "answers": self._answers, "labels": self._labels}[check.kind]
                found |= {f"{name}.{metric}": value for metric, value in examine(check, share).items()}
        if not keep_features:
            self._held_out.forget()
        return found

    def _retrieval(self, check: Check, share: Share) -> dict[str, float]:
        if self.captioner is None or not self.model.config.retrieval:
            raise BadConfig(f"check {check.name}: this model's Q-Former has no retrieval heads")
        usable: list[tuple[Tensor, str, str]] = []
        for item in share.items:
            if item.record.images == 1:
                try:
                    text = caption_text(item.record, check, First())
                except BadSample:
                    continue
                usable.append((item.features_IND, text, str(item.record.fields.get("group", item.record.key))))
        bad = self._bad(check, share, len(usable))
        # Any text may have any picture among its candidates, so all processes need all of them.
        features, texts, groups = zip(*self.world.gather(usable), strict=True)
        found = retrieval(
            there(self.model.qformer, "qformer"),
            torch.cat(features),
            self.captioner.batch(texts),
            groups,
            top_k=check.top_k,
            temperature=self.temperature() if self.temperature else self.model.config.itc_temperature,
            world=self.world,
            beat=self.beat,
        )
        return found | bad

    def _answers(self, check: Check, share: Share) -> dict[str, float]:
        if self.encoder is None or self.tokenizer is None:
            raise BadConfig(f"check {check.name}: answers need the LLaMA and its tokenizer, which are not loaded")
        questions: list[_Question] = []
        for item in share.items:
            try:
                questions.append(self._question(check, item, self.encoder))
            except BadSample:
                continue
        bad = self._bad(check, share, len(questions))
        prompts, tokens = [question.prompt for question in questions], self._tokens(questions)
        said = answers(self.model, prompts, tokens, max_tokens=MAX_ANSWER, batch=BATCH, beat=self.beat)
        texts = self.tokenizer.decode_batch(said)
        right = [is_right(text, one.truths, check.language) for text, one in zip(texts, questions, strict=True)]
        all_right, all_asked = self.world.sum([float(sum(right)), float(len(right))])
        return {"exact": all_right / all_asked} | bad

    def _labels(self, check: Check, share: Share) -> dict[str, float]:
        name = check.field or ""
        if self.labels is None or name not in self.labels.heads:
            known = ", ".join(self.labels.heads) if self.labels else "none, for nothing here learns labels"
            raise BadConfig(f"check {check.name}: there is no label {name!r} to examine, only {known}")
        classes, head = self.labels.classes[name], self.labels.heads[name]
        usable = [
            (item.features_IND.mean(1), classes[label])
            for item in share.items
            if item.record.images == 1 and (label := item.record.fields.get("labels", {}).get(name)) in classes
        ]
        bad = self._bad(check, share, len(usable))
        right = [0.0, 0.0, 0.0]
        for start in range(0, len(usable), BATCH):
            means, truths = zip(*usable[start : start + BATCH], strict=True)
            logits_BC = head(torch.cat(means).to(self.world.device))
            best_BK = logits_BC.topk(min(5, logits_BC.shape[1])).indices.cpu()
            same_BK = best_BK == torch.tensor(truths)[:, None]
            right = [
                right[0] + float(same_BK[:, 0].sum()),
                right[1] + float(same_BK.any(1).sum()),
                right[2] + len(truths),
            ]
        top1, top5, count = self.world.sum(right)
        return {"top1": top1 / count, "top5": top5 / count} | bad

    def _question(self, check: Check, item: Item, encoder: Encoder) -> _Question:
        question = asked(item.record, check, self.datasets[check.data].templates)
        piece = encoder.piece(question.conversation, item.record.key)
        # The last answer is all that is learnt at the end: what stands before it is what serving would be asked.
        length = max(place for place, learnt in enumerate(piece.learnt) if not learnt) + 1
        prompt = Prompt(piece.ids[:length], piece.visual[:length])
        return _Question(prompt, question.truths, item.features_IND, _instructions(question.conversation, item.record))

    def _tokens(self, questions: Sequence[_Question]) -> list[Tensor]:
        """The visual tokens of each question's images, [V, width]."""
        device, tokens = self.world.device, list[Tensor]()
        for start in range(0, len(questions), BATCH):
            some = questions[start : start + BATCH]
            texts = [text for question in some for text in question.texts]
            if not texts:
                tokens += [torch.zeros(0, self.model.config.qformer_width)] * len(some)
                continue
            features = torch.cat([question.features_IND for question in some if question.texts]).to(device)
            instructions = None
            if self.model.config.qformer_reads_instruction and self.captioner is not None:
                instructions = to_device(self.captioner.instructions(texts), device)
            every = self.model.tokens(features, instructions)
            tokens += [one.flatten(0, 1) for one in torch.split(every, [len(question.texts) for question in some])]
            self.beat(f"reading pictures: {start} of {len(questions)}")
        return tokens

    def _bad(self, check: Check, share: Share, usable: int) -> dict[str, float]:
        """The share of bad records over all processes. Raises BadData when there is no other."""
        mine = (float(usable), float(len(share.items) - usable + share.bad))
        good, bad = self.world.sum(mine)
        if not good:
            raise BadData(f"check {check.name}: none of the {int(bad)} records of {check.data} can be used")
        return {"bad": bad / (good + bad)} if bad else {}


def check_names(checks: Collection[Check]) -> list[str]:
    """The checks' names; where several bear the same, the second is `<name>#2` and so on."""
    names: list[str] = []
    seen: dict[str, int] = {}
    for check in checks:
        seen[check.name] = count = seen.get(check.name, 0) + 1
        names.append(check.name if count == 1 else f"{check.name}#{count}")
    return names


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module has afterwards the mode it had before."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def write_report(path: Path, stage: str, step: int, metrics: Mapping[str, float]) -> None:
    """The evaluation of a stage at a step as JSON: the whole file or nothing."""
    write_json(path, {"stage": stage, "step": step, "metrics": dict(metrics)})


def _instructions(conversation: Conversation, record: Record) -> list[str]:
    """For each image the text of the turn that shows it, as in training and serving."""
    shown = {image: turn.text for turn in conversation.turns for image in turn.images}
    return [shown.get(image, "") for image in range(record.images)]
