"""The instruction as the Q-Former reads it: token ids of the Q-Former's own tokenizer. No torch.

The gateway needs the ids for the content key of visual tokens and the Q-Former needs them for its text
branch, so both come through here. Long instructions keep their end, where the question stands (as InstructBLIP does).
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from ziya.checkpoint import CheckpointError

MAX_TOKENS = 128


def load_instruction_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in qformer/ of the checkpoint `folder`. Raises CheckpointError when there is none."""
    path = folder / "qformer" / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: a Q-Former that reads text needs its tokenizer")
    tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS, direction="left")
    return tokenizer


def instruction_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of `text` with the tokenizer's special tokens, at most `MAX_TOKENS`."""
    return list(tokenizer.encode(text).ids)
