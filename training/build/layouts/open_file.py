"""A file that is read here and there, and closed when the last reader lets go of it."""

from __future__ import annotations

import os
import weakref
from pathlib import Path


class OpenFile:
    """Has no position, so any number of readers may share it. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer at the end of the file."""
        parts: list[bytes] = []
        while size and (part := os.pread(self._handle, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)
