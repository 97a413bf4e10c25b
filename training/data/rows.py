"""From conversations to the rows that the LLaMA trains on. Legend: R rows, T positions.

A *piece* is one conversation as positions. Its ids are what serving would make of it: the longest prompt in it is
rendered and tokenised by `ziya.prompt` as one, earlier answers within it, and the last answer goes on from there. An
answer is learnt where the model would meet the very same ids before it. That is nearly always; but a tokenizer may
merge the end of the prompt with the answer once that is history, and what never stands before an answer in serving
is no place to learn it from. The last answer is always learnt.

A *row* holds one piece, or several that do not see one another, each at the positions it would have alone; what several
pieces begin with alike may stand in it once (training/data/sharing.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from training.data.batch import TEXT, Rows
from training.data.record import Conversation
from training.data.sharing import Branch, Strand, trees, untils
from training.errors import BadSample
from training.recipe import PACKED, Text
from ziya.checkpoint import PromptTemplate
from ziya.prompt import Turn, render, tokenize

# Rows of a width that tensor cores like; the width changes from batch to batch.
WIDTH_STEP = 8


@dataclass(frozen=True)
class Piece:
    """One conversation as positions: token ids (0 at visual positions), visual token or TEXT, whether learnt.

    A visual token's number is the image's number in the sample x queries + query.
    """

    ids: list[int]
    visual: list[int]
    learnt: list[bool]


# The sample's place in the batch, its source's number, the number of its first image in the batch, the piece.
Placed = tuple[int, int, int, Piece]


@dataclass(frozen=True)
class _Answer:
    """Where an answer stands: in which text of the prompt, between which two of that text's beginnings."""

    text: int
    before: str
    after: str


class Encoder:
    """Makes pieces within `limits`: of a long instruction the end is kept, of a long answer the beginning.

    An answer that was cut is not learnt to stop there.
    """

    def __init__(self, tokenizer: Tokenizer, template: PromptTemplate, queries: int, limits: Text) -> None:
        self.tokenizer, self.template, self.queries, self.limits = tokenizer, template, queries, limits

    def piece(self, conversation: Conversation, key: str = "") -> Piece:
        """All positions of a conversation. Raises BadSample, naming `key`, when they are more than a row has."""
        turns, cut = self._shortened(conversation.turns, key)
        prompt = render(turns[:-1], self.template)
        texts = tokenize(self.tokenizer, prompt.texts)
        learnt = [[False] * len(ids) for ids in texts]
        answers = self._answers(turns, cut)
        borders = tokenize(self.tokenizer, [text for answer in answers for text in (answer.before, answer.after)])
        for answer, before, after in zip(answers, borders[::2], borders[1::2], strict=True):
            ids = texts[answer.text]
            if answer is answers[-1]:
                goes_on = after[: len(before)] == before
                said = after[len(before) :] if goes_on else self._ids(answer.after.removeprefix(answer.before))
                ids += said
                learnt[answer.text] += [True] * len(said)
            elif ids[: len(after)] == after and after[: len(before)] == before:
                learnt[answer.text][len(before) : len(after)] = [True] * (len(after) - len(before))
        return self._joined(texts, learnt, prompt.images, key)

    def _joined(
        self, texts: Sequence[list[int]], learnt: Sequence[list[bool]], images: Sequence[int], key: str
    ) -> Piece:
        """Texts with the images between them."""
        whole = Piece([], [], [])
        for number, ids in enumerate(texts):
            if number > 0:
                first = images[number - 1] * self.queries
                whole.ids.extend([0] * self.queries)
                whole.visual.extend(range(first, first + self.queries))
                whole.learnt.extend([False] * self.queries)
            whole.ids.extend(ids)
            whole.visual.extend([TEXT] * len(ids))
            whole.learnt.extend(learnt[number])
        if len(whole.ids) > self.limits.row_positions:
            raise BadSample(key, f"too long: {len(whole.ids)} positions, a row has {self.limits.row_positions}")
        return whole

    def _answers(self, turns: Sequence[Turn[int]], cut: set[int]) -> list[_Answer]:
        """Every answer with its end of turn; without, where the answer was cut."""
        found = []
        for number in range(1, len(turns), 2):
            asked = render(turns[:number], self.template)
            # Serving renders a finished answer only with a question after it.
            later = render((*turns[: number + 1], Turn("user", "")), self.template).texts[-1]
            after = later.removesuffix(self.template.human + self.template.bot)
            if number in cut:
                after = after.removesuffix(self.template.turn_end)
            found.append(_Answer(len(asked.images), asked.texts[-1], after))
        return found

    def _shortened(self, turns: Sequence[Turn[int]], key: str) -> tuple[list[Turn[int]], set[int]]:
        """The turns within the limits, and the numbers of the cut ones."""
        short, cut = list(turns), set()
        for number, turn in enumerate(turns):
            text = self._cut(turn)
            if text is None:
                continue
            if turn.role == "assistant" and not text:
                raise BadSample(key, f"too long: no part of an answer fits in {self.limits.answer_tokens} tokens")
            short[number] = replace(turn, text=text)
            cut.add(number)
        return short, cut

    def _cut(self, turn: Turn[int]) -> str | None:
        """What is left of a text that is too long; None when it is not."""
        is_answer = turn.role == "assistant"
        most = self.limits.answer_tokens if is_answer else self.limits.instruction_tokens
        # Counted as it will stand in the prompt, with markers of the template defused.
        whole = render([Turn[int]("user", turn.text)], self.template).texts[0]
        whole = whole.removeprefix(self.template.human).removesuffix(self.template.bot)
        text, encoding = whole, self.tokenizer.encode(whole, add_special_tokens=False)
        # More than once, because what is left may be other tokens, and a character several.
        while len(encoding.ids) > most:
            if is_answer:
                text = text[: encoding.offsets[most][0]].rstrip()
            else:
                text = text[max(1, encoding.offsets[-most][0] if most else len(text)) :].lstrip()
            encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return None if text == whole else text

    def _ids(self, text: str) -> list[int]:
        return tokenize(self.tokenizer, [text])[0]


def bucketed(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Numbers of samples in `parts` equal parts, like lengths together; of equal ones the first comes first."""
    size, left = divmod(len(lengths), parts)
    if left:
        raise ValueError(f"{len(lengths)} samples cannot be cut in {parts} equal parts")
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[part * size : (part + 1) * size] for part in range(parts)]


def packed(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Rows of piece numbers: from the longest on, each goes into the first row where it fits."""
    rows: list[list[int]] = []
    free: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        length = lengths[number]
        if length > room:
            raise ValueError(f"a piece of {length} positions does not fit in a row of {room}")
        row = next((row for row, left in enumerate(free) if left >= length), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(room)
        rows[row].append(number)
        free[row] -= length
    return rows


def evenly_packed(lengths: Sequence[int], room: int) -> list[list[int]]:
    """As few rows as `packed` makes, and as narrow as they can be then: the last row is as full as the first."""
    best = packed(lengths, room)
    low, high = max(lengths, default=0), room
    while low < high:
        middle = (low + high) // 2
        rows = packed(lengths, middle)
        if len(rows) == len(best):
            best, high = rows, middle
        else:
            low = middle + 1
    return best


def layout(pieces: Sequence[Placed], text: Text, queries: int) -> Rows:
    """Pieces in rows as `text.layout` says; `bucket` lays out like `pad` what the caller has sorted (`bucketed`).

    With `share`, pieces that name the same images in the batch have what they begin with alike in common.
    """
    lengths, rows = [len(piece.ids) for *_, piece in pieces], _arranged(pieces, text, queries)
    width = max((sum(lengths[number] - shared for number, shared in row) for row in rows), default=0)
    if text.layout in PACKED:
        width = min(text.row_positions, -(-width // WIDTH_STEP) * WIDTH_STEP)
    shape = (len(rows), width)
    ids, position, segment, source, sample, until = np.zeros((6, *shape), np.int64)
    visual, learnt = np.full(shape, TEXT, np.int64), np.zeros(shape, np.bool_)
    for row, branches in enumerate(rows):
        at = 0
        for count, (number, shared) in enumerate(branches, start=1):
            sample_number, source_number, first_image, piece = pieces[number]
            place, own = (row, slice(at, at + lengths[number] - shared)), slice(shared, None)
            at += lengths[number] - shared
            ids[place], learnt[place] = piece.ids[own], piece.learnt[own]
            position[place] = np.arange(shared, lengths[number])
            visual[place] = _shown(piece, first_image * queries)[own]
            segment[place], source[place], sample[place] = count, source_number, sample_number
        if text.layout == "share":
            until[row, :at] = untils(lengths, branches)
    made = Rows(*map(torch.from_numpy, (ids, visual, position, segment, learnt, source, sample)))
    return replace(made, until_RT=torch.from_numpy(until)) if text.layout == "share" else made


def _arranged(pieces: Sequence[Placed], text: Text, queries: int) -> list[list[Branch]]:
    """Rows of piece numbers, each with how many of its first positions the row has already."""
    units: list[list[Branch]] = [[(number, 0)] for number in range(len(pieces))]
    if text.layout not in PACKED:
        return units
    if text.layout == "share":
        units = trees([_strand(placed, queries) for placed in pieces], text.row_positions)
    sizes = [sum(len(pieces[number][3].ids) - shared for number, shared in unit) for unit in units]
    return [[branch for unit in row for branch in units[unit]] for row in evenly_packed(sizes, text.row_positions)]


def _shown(piece: Piece, first: int) -> NDArray[np.int64]:
    """The visual tokens by their numbers in the batch, where the sample's first has the number `first`."""
    shown = np.array(piece.visual, np.int64)
    return np.where(shown == TEXT, TEXT, shown + first)


def _strand(placed: Placed, queries: int) -> Strand:
    *_, first_image, piece = placed
    visual = _shown(piece, first_image * queries).tolist()
    first = next((place for place, one in enumerate(visual) if one != TEXT), len(visual))
    end = next((place for place in range(first, len(visual)) if visual[place] == TEXT), 0)
    return Strand(list(zip(visual, piece.ids, strict=True)), end, max(0, piece.learnt.index(True) - 1))


def attention(rows: Rows, dtype: torch.dtype) -> Tensor:
    """Additive mask [R, 1, T, T]: causal within a segment, or up to `until`; padding sees itself, for a row of nothing
    is NaN."""
    segment_RT = rows.segment_RT
    length = segment_RT.shape[1]
    if rows.until_RT is not None:
        same_RTT = torch.arange(length, device=segment_RT.device)[:, None] < rows.until_RT[:, None, :]
    else:
        same_RTT = (segment_RT[:, :, None] == segment_RT[:, None, :]) & (segment_RT[:, :, None] > 0)
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=segment_RT.device).tril()
    itself_TT = torch.eye(length, dtype=torch.bool, device=segment_RT.device)
    allowed_RTT = (same_RTT & causal_TT) | itself_TT
    mask_RTT = torch.zeros(allowed_RTT.shape, dtype=dtype, device=segment_RT.device)
    return mask_RTT.masked_fill_(~allowed_RTT, torch.finfo(dtype).min).unsqueeze(1)


def useful(rows: Rows) -> int:
    """Positions that the samples would have alone, without padding: what they share counts once for each of them."""
    segment_RT = functional.pad(rows.segment_RT, (0, 1))
    ends_RT = (segment_RT[:, :-1] > 0) & (segment_RT[:, :-1] != segment_RT[:, 1:])
    return int((rows.position_RT[ends_RT] + 1).sum())


def useful_share(rows: Rows) -> float:
    """Positions that hold something, of all positions (1 when there is none)."""
    return float((rows.segment_RT > 0).sum()) / rows.segment_RT.numel() if rows.segment_RT.numel() else 1.0
