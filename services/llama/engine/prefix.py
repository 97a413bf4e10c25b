"""Names for the beginnings of prompts: equal names, equal keys and values.

A block's keys and values depend on everything up to its end. So its name is a hash chained over all blocks before:
blake2b of the name before it and what stands at its own positions. A text token stands for itself; a visual token
for the image's digest and its index in it, so that the same image is known again whichever way it came, and a
placeholder is never mistaken for another image's. The chain begins with the tenant's salt and the adapter.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b

from services.llama.engine.blocks import BLOCK
from services.llama.engine.seam import Prompt

VISUAL = -1  # stands for a visual token among text token ids
_SIZE = 16


class Prefix:
    """What stands at a request's positions, and the names of its blocks; grows with the answer.

    `tokens` holds text token ids, VISUAL where an image's rows are. `lineage` tells apart what must never be shared.
    """

    def __init__(self, prompt: Prompt, lineage: bytes = b"") -> None:
        self.tokens: list[int] = []
        self._keys: list[bytes] = []
        for number, piece in enumerate(prompt.pieces):
            if number:
                visual = prompt.visuals[number - 1]
                digest = blake2b(visual.tobytes(), digest_size=_SIZE).digest()
                self.tokens.extend([VISUAL] * len(visual))
                self._keys.extend(b"v" + digest + struct.pack("<I", index) for index in range(len(visual)))
            self.extend(piece)
        root = struct.pack("<I", len(prompt.salt)) + prompt.salt + lineage
        self._chain = [blake2b(root, digest_size=_SIZE).digest()]

    def extend(self, tokens: Sequence[int]) -> None:
        self.tokens.extend(tokens)
        self._keys.extend(b"t" + struct.pack("<q", token) for token in tokens)

    def name(self, block: int) -> bytes:
        """The name of the request's block of that number, whose positions must all be known."""
        while len(self._chain) <= block + 1:
            start = (len(self._chain) - 1) * BLOCK
            content = b"".join(self._keys[start : start + BLOCK])
            self._chain.append(blake2b(self._chain[-1] + content, digest_size=_SIZE).digest())
        return self._chain[block + 1]
