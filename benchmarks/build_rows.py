"""What a build of very many rows needs of memory and time, from the plan to the report; nobody is asked.

    python -m benchmarks.build_rows [--rows 1000000] [--pieces 1] [--again 0] [--alike] [--folder DIR]

The rows are a JSONL file and three small pictures. The ledger is filled with the answers that the tests' language model
would give; then `ziya data build` does what it does after a kill: it plans all questions, finds them answered, and
writes shards, index, manifest and report. The largest resident size is that of the building process. With several
pieces their joining is timed on its own; --again 50 lets one row in fifty come again, in an earlier piece or the same.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.build_inputs import jpeg
from tests.filled_ledger import filled

WORDS = ("dog", "cat", "bird", "man", "child", "boat", "house", "tree", "road", "table", "chair", "horse", "lake")
_BACK = 3 * 4000  # rows: as many pictures again
_BUILD = """
import json, resource, sys, time
from training.build import dry_run, rows, stage
from training.build.options import read_options
from training.job import Stage
from training.pieces import Pieces
from training.stage_folder import StageFolder
from pathlib import Path
options, output, shards = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
began = time.monotonic()
dry = dry_run.dry_run(read_options(options, "this"), rows.open_rows(read_options(options, "this")))
planned = time.monotonic()
print(json.dumps({"planned": dry.rows, "to_ask": dry.estimate.requests, "seconds": planned - began, "MiB": peak()}))
told = {"name": "build", "type": "data", "builder": "training.build.stage", "options": options, "shards": shards}
pieces, join, joined = Pieces(Stage.model_validate(told), StageFolder(output)), stage.join, {}
def timed(*some, **more):
    before, began, busy = peak(), time.monotonic(), time.process_time()
    made = join(*some, **more)
    joined.update(joining=time.monotonic() - began, processor=time.process_time() - busy, MiB_before_joining=before)
    return made
stage.join = timed
for number in range(shards):
    pieces.build(number)
made = json.loads((output / "manifest.json").read_text())
seconds = time.monotonic() - planned
rejects = {gate: sum(kinds.values()) for gate, kinds in made["made"]["rejects"].items()}
written = {"written": made["records"], "rows": made["rows"], "rejects": rejects}
print(json.dumps({**written, "seconds": seconds, **joined, "MiB": peak()}))
"""


def captions(count: int, alike: bool) -> Iterator[str]:
    """Words in any order; or, `alike`, in one frame: two of three are then near duplicates of an earlier one."""
    draw = random.Random(8)
    for number in range(count):
        if not alike:
            yield f"a {' '.join(draw.choices(WORDS, k=10))}"
            continue
        one, two, three, four, five, six = (WORDS[(number // len(WORDS) ** place) % len(WORDS)] for place in range(6))
        yield f"a {one} and a {two} near the {three}, a {four} behind the {five} of the {six}"


def prepare(place: Path, count: int, *, again: int, alike: bool) -> dict[str, Any]:
    """The input, a ledger in which everything is answered, and the options. One row in `again` is an earlier one."""
    said: deque[str] = deque(maxlen=_BACK)
    for number in range(3):
        (place / f"{number}.jpg").write_bytes(jpeg(number))
    with (place / "rows.jsonl").open("w") as file:
        for number, caption in enumerate(captions(count, alike)):
            said.append(said[0] if again and len(said) == _BACK and number % again == again - 1 else caption)
            file.write(json.dumps({"image": f"{number % 3}.jpg", "caption": said[-1]}) + "\n")
    return filled(place, place / "rows.jsonl")


def measure(place: Path, count: int, pieces: int = 1, *, again: int = 0, alike: bool = False) -> list[dict[str, Any]]:
    """Of planning, and of all that comes after it: rows, seconds, MiB at most."""
    began = time.monotonic()
    options = prepare(place, count, again=again, alike=alike)
    ready = {"filled": count, "seconds": time.monotonic() - began}
    command = [sys.executable, "-c", _BUILD, json.dumps(options), str(place / "out"), str(pieces)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [ready, *map(json.loads, done.stdout.splitlines())]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.build_rows", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pieces", type=int, default=1, help="built one after another, and joined")
    parser.add_argument("--again", type=int, default=0, help="one row in so many is an earlier one; 0: none")
    parser.add_argument("--alike", action="store_true", help="captions in one frame: two of three are near duplicates")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    how = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=how.folder) as name:
        for told in measure(Path(name), how.rows, how.pieces, again=how.again, alike=how.alike):
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
