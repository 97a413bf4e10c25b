"""From an image and a question to the content keys of its features and visual tokens; no torch.

Gateway, vision and Q-Former must derive the same key from the same request, so all three come through
here. Where the checkpoint's Q-Former reads the instruction (InstructBLIP's way), the ids that it will
read are part of the key, and `qformer/tokenizer.json` is the one file read besides config.json;
where it does not, the instruction's text changes nothing and no tokenizer is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from tokenizers import Tokenizer

from ziya import keys
from ziya.checkpoint import CheckpointConfig, read_config
from ziya.instruction import instruction_ids, load_instruction_tokenizer

DTYPE = "float16"
"""Element type of features and tokens on the bus."""


class ContentKeys:
    """Keys of one checkpoint's features and tokens; `tokenizer` is needed when its Q-Former reads the instruction."""

    def __init__(self, config: CheckpointConfig, tokenizer: Tokenizer | None = None) -> None:
        if config.qformer_reads_instruction and tokenizer is None:
            raise ValueError("this checkpoint's Q-Former reads the instruction: its tokenizer is needed")
        self.config = config
        self.vision_fingerprint = config.fingerprints["vision"]
        self.qformer_fingerprint = config.fingerprints["qformer"]
        self._tokenizer = tokenizer if config.qformer_reads_instruction else None

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The keys of the checkpoint in `folder`. Raises CheckpointError naming the file that is missing."""
        config = read_config(folder)
        return cls(config, load_instruction_tokenizer(folder) if config.qformer_reads_instruction else None)

    def features(self, image_id: str, salt: str = "") -> str:
        """Key of the image's ViT features."""
        return keys.features_key(image_id, vision_fingerprint=self.vision_fingerprint, dtype=DTYPE, salt=salt)

    def tokens(self, features_key: str, instruction: str) -> str:
        """Key of the visual tokens made from the features under `features_key`, asked about with `instruction`."""
        ids = self.instruction_ids(instruction)
        return keys.tokens_key(features_key, qformer_fingerprint=self.qformer_fingerprint, instruction_ids=ids)

    def instruction_ids(self, text: str) -> list[int] | None:
        """What the Q-Former reads of an instruction, with its special tokens; None when it reads none."""
        return None if self._tokenizer is None else instruction_ids(self._tokenizer, text)
