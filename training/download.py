"""`python -m training.download URL FOLDER [PART …]`: a checkpoint, or some of its parts, out of an object store.

What a pod runs before a stage that has no volume to read its weights from. `config.json` and the tokenizer of a
Q-Former that reads the instruction always come along: the gateway needs nothing else. A copy that broke off is made
again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import fsspec

from training.errors import BadConfig, TrainingError
from ziya.checkpoint import PARTS, CheckpointError, read_config

CONFIG, TOKENIZER = "config.json", "qformer/tokenizer.json"


def download(url: str, folder: Path, parts: list[str]) -> None:
    """Raises BadConfig and CheckpointError where there is no such checkpoint, and OSError where the way there fails."""
    try:
        filesystem, root = fsspec.core.url_to_fs(url.rstrip("/"))
    except (ImportError, ValueError) as error:
        raise BadConfig(str(error)) from error
    if not filesystem.exists(f"{root}/{CONFIG}"):
        raise BadConfig(f"it has no {CONFIG}")
    _fetch(filesystem, f"{root}/{CONFIG}", folder / CONFIG)
    read_config(folder)
    for part in parts:
        names = [str(name) for name in filesystem.find(f"{root}/{part}")]
        if not names:
            raise BadConfig(f"it has no {part}/ part")
        for name in names:
            _fetch(filesystem, name, folder / part / name.split(f"{root}/{part}/", 1)[1])
    if "qformer" not in parts and filesystem.exists(f"{root}/{TOKENIZER}"):
        _fetch(filesystem, f"{root}/{TOKENIZER}", folder / TOKENIZER)


def _fetch(filesystem: Any, source: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    filesystem.get_file(source, str(target))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.download", description=__doc__)
    parser.add_argument("url", help="the checkpoint's folder, as s3://bucket/folder")
    parser.add_argument("folder", type=Path, help="where it comes to")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}")
    how = parser.parse_args()
    if wrong := sorted(set(how.parts) - set(PARTS)):
        parser.error(f"no part of a checkpoint is called {wrong[0]}")
    try:
        download(how.url, how.folder, how.parts)
    except (TrainingError, CheckpointError, OSError) as error:
        print(f"{how.url} cannot be fetched: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
