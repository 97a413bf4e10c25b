"""Content keys: which bytes on the bus belong to which image, question and weights.

    image_id = SHA-256(image file)
    features = H(image_id, vision fingerprint, dtype, salt)          the fingerprint covers the preprocessing
    tokens   = H(features key, instruction ids or none, Q-Former fingerprint)

All are 256 bits wide: a short or incomplete key is how a cache answers about somebody else's picture.
The instruction enters only when the checkpoint's Q-Former reads it, so that otherwise one entry serves
every question about an image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

FEATURES_PREFIX = "ziya:features:"
TOKENS_PREFIX = "ziya:tokens:"
LEFT_PREFIX = "ziya:left:"


def image_id(image: bytes) -> str:
    """SHA-256 of the encoded image file, in hex."""
    return hashlib.sha256(image).hexdigest()


def features_key(image: str, *, vision_fingerprint: str, dtype: str, salt: str = "") -> str:
    """Key of the ViT features of the image with id `image`."""
    return FEATURES_PREFIX + _digest("features", image, vision_fingerprint, dtype, salt)


def tokens_key(features: str, *, qformer_fingerprint: str, instruction_ids: Sequence[int] | None = None) -> str:
    """Key of the visual tokens; `instruction_ids` is None when the Q-Former does not read the instruction."""
    instruction = "" if instruction_ids is None else "i" + ",".join(map(str, instruction_ids))
    return TOKENS_PREFIX + _digest("tokens", features, qformer_fingerprint, instruction)


def left_key(request: str, deadline: float) -> str:
    """What is announced when the asker of a request has left; of two whose clients chose one id, deadlines differ."""
    return LEFT_PREFIX + _digest("left", request, repr(deadline))


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
