"""LoRA adapters from a folder, a folder each: loaded when they come, unloaded when they go, anew when they change.

So an adapter is served by putting it there (`peft`'s save_pretrained to a folder beside, then a rename), and taken out
of service by removing it; a pod needs a volume for it and no call. One that cannot be used is named in the log, once,
and tried again when its files change; requests for it are refused by name as for any that is not loaded.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from services.llama.engine.seam import Engine
from ziya.errors import ZiyaError

log = logging.getLogger(__name__)
FILES = ("adapter_config.json", "adapter_model.safetensors")
State = tuple[tuple[int, int, int], ...]  # of each file: its inode, size and time


class AdapterFolder:
    """Keeps the engine's adapters like the folders in `root`; names that begin with a dot are left alone."""

    def __init__(self, engine: Engine, root: Path) -> None:
        self._engine, self._root = engine, root
        self._seen: dict[str, State] = {}

    async def watch(self, interval: float) -> None:
        """Looks every `interval` seconds; runs until it is cancelled."""
        while True:
            await asyncio.sleep(interval)
            await self.look()

    async def look(self) -> None:
        """One comparison of folders and adapters. An adapter in use goes when its last request has ended."""
        there = await asyncio.to_thread(_states, self._root)
        for name in [name for name, state in self._seen.items() if there.get(name) != state]:
            del self._seen[name]
            if name in self._engine.adapters():
                await self._engine.unload_adapter(name)
                log.info("an adapter was unloaded", extra={"adapter": name})
        for name, state in there.items():
            if name not in self._seen:
                self._seen[name] = state
                await self._load(name)

    async def _load(self, name: str) -> None:
        try:
            await self._engine.load_adapter(name, self._root / name)
        except (ZiyaError, OSError) as error:
            log.error("an adapter cannot be used", extra={"adapter": name, "error": str(error)})
        else:
            log.info("an adapter was loaded", extra={"adapter": name})


def _states(root: Path) -> dict[str, State]:
    """Folders that hold all files of an adapter. None when `root` cannot be read."""
    found = {}
    try:
        folders = [folder for folder in root.iterdir() if not folder.name.startswith(".")]
    except OSError as error:
        log.error("the folder of adapters cannot be read", extra={"folder": str(root), "error": str(error)})
        return {}
    for folder in folders:
        try:
            stats = [(folder / file).stat() for file in FILES]
        except OSError:
            continue  # not all there yet, or no longer
        found[folder.name] = tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)
    return found
