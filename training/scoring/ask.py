"""An item as it is put to a model, and who can be asked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from training.scoring.item import Item
from training.scoring.store import Said


@dataclass(frozen=True)
class Ask:
    """`digest` names the answer in the store. In each `round` all is asked anew."""

    item: Item
    digest: str
    round: int = 0

    def pictures(self) -> list[bytes]:
        """The files. Raises BadSample."""
        return [picture() for picture in self.item.pictures]


class Target(Protocol):
    """A model that answers. `identity` is all that decides its answers besides question and pictures."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> Mapping[str, object]: ...

    def answers(self, asks: Sequence[Ask]) -> AsyncGenerator[tuple[Ask, Said], None]:
        """Every answer as it is known, in any order."""
        ...
