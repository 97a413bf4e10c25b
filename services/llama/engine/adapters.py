"""The adapters that are loaded, and how many requests use each: one that is taken out leaves when they have ended."""

from __future__ import annotations

import threading
from collections import Counter

from services.llama.engine.lora import LoraAdapter
from ziya.errors import InvalidRequest

MOST = 64  # each holds memory beside the model's


class Adapters:
    """By name. For any thread."""

    def __init__(self) -> None:
        self._loaded: dict[str, LoraAdapter] = {}
        self._users: Counter[LoraAdapter] = Counter()
        self._changed = threading.Condition()

    @property
    def names(self) -> tuple[str, ...]:
        with self._changed:
            return tuple(sorted(self._loaded))

    def add(self, adapter: LoraAdapter) -> None:
        """Raises InvalidRequest when its name is taken, or there are too many."""
        with self._changed:
            self._refuse(adapter.name)
            self._loaded[adapter.name] = adapter

    def refuse(self, name: str) -> None:
        """As `add` would, before the files are read."""
        with self._changed:
            self._refuse(name)

    def _refuse(self, name: str) -> None:
        if not name:
            raise InvalidRequest("an adapter must have a name")
        if name in self._loaded:
            raise InvalidRequest(f"an adapter {name} is loaded already; unload it first")
        if len(self._loaded) >= MOST:
            raise InvalidRequest(f"{MOST} adapters are loaded already, and no more fit")

    def use(self, name: str) -> LoraAdapter | None:
        """For one request more; None for no name. Raises InvalidRequest when it is not loaded."""
        if not name:
            return None
        with self._changed:
            adapter = self._loaded.get(name)
            if adapter is None:
                raise InvalidRequest(
                    f"there is no adapter {name}; loaded are: {', '.join(sorted(self._loaded)) or 'none'}"
                )
            self._users[adapter] += 1
            return adapter

    def leave(self, adapter: LoraAdapter | None) -> None:
        """A request that had it by `use` has ended."""
        if adapter is None:
            return
        with self._changed:
            self._users[adapter] -= 1
            if not self._users[adapter]:
                del self._users[adapter]
                self._changed.notify_all()

    def remove(self, name: str) -> None:
        """From now on nobody gets it; blocks until those who have it have ended. InvalidRequest if it is not loaded."""
        with self._changed:
            adapter = self._loaded.pop(name, None)
            if adapter is None:
                raise InvalidRequest(f"there is no adapter {name}")
            self._changed.wait_for(lambda: adapter not in self._users)
