"""Source as a tree, for tests that read code, whatever else this process is at."""

from __future__ import annotations

import ast
import gc


def parsed(source: str) -> ast.Module:
    """Without the garbage collector: before Python 3.11.8 a finaliser that runs meanwhile can make `ast.parse` raise
    SystemError (python/cpython#106905)."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        if collects:
            gc.enable()
