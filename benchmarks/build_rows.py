"""What a build of very many rows needs of memory and time, from the plan to the report; nobody is asked.

    python -m benchmarks.build_rows [--rows 1000000] [--folder DIR]

The rows are a JSONL file and three small pictures. The ledger is filled with the answers that the tests' language model
would give; then `ziya data build` does what it does after a kill: it plans all questions, finds them answered, and
writes shards, index, manifest and report. The largest resident size is that of the building process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.build_inputs import jpeg
from tests.build_rules import answer
from training.build.asking import questions
from training.build.options import BuildOptions, read_options
from training.build.rows import open_rows
from training.build.work import Plan
from training.llm.call import Call
from training.llm.ledger import Ledger

URL = "http://127.0.0.1:9/v1"  # nobody answers there
WORDS = ("dog", "cat", "bird", "man", "child", "boat", "house", "tree", "road", "table", "chair", "horse", "lake")
_BUILD = """
import json, resource, sys, time
from training.build import dry_run, rows, stage
from training.build.options import read_options
from training.job import Stage
from training.pieces import Pieces
from training.stage_folder import StageFolder
from pathlib import Path
options, output = json.loads(sys.argv[1]), Path(sys.argv[2])
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
began = time.monotonic()
dry = dry_run.dry_run(read_options(options, "this"), rows.open_rows(read_options(options, "this")))
planned = time.monotonic()
print(json.dumps({"planned": dry.rows, "to_ask": dry.estimate.requests, "seconds": planned - began, "MiB": peak()}))
told = {"name": "build", "type": "data", "builder": "training.build.stage", "options": options}
Pieces(Stage.model_validate(told), StageFolder(output)).build(0)
made = json.loads((output / "manifest.json").read_text())
seconds = time.monotonic() - planned
print(json.dumps({"written": made["records"], "rows": made["rows"], "seconds": seconds, "MiB": peak()}))
"""


def captions(count: int) -> Iterator[str]:
    """No two alike, and no two nearly so about one picture more often than chance has it."""
    for number in range(count):
        words = [WORDS[(number // len(WORDS) ** place) % len(WORDS)] for place in range(6)]
        yield f"a {words[0]} and a {words[1]} near the {words[2]}, a {words[3]} behind the {words[4]} of the {words[5]}"


def prepare(place: Path, count: int) -> BuildOptions:
    """The input, and a ledger in which everything is answered."""
    for number in range(3):
        (place / f"{number}.jpg").write_bytes(jpeg(number))
    with (place / "rows.jsonl").open("w") as file:
        for number, caption in enumerate(captions(count)):
            file.write(json.dumps({"image": f"{number % 3}.jpg", "caption": caption}) + "\n")
    told: dict[str, Any] = {"input": str(place / "rows.jsonl"), "licence": "CC0-1.0", "url": URL, "model": "translator"}
    told |= {"ledger": str(place / "ledger.sqlite"), "gates": {"backTranslation": 0}}
    options = read_options(told, "this")
    with Ledger(place / "ledger.sqlite") as ledger:
        ledger._file.execute("PRAGMA synchronous=OFF")
        for question in questions(Plan(options), open_rows(options)):
            text = json.dumps(answer(question.messages, question.schema), ensure_ascii=False)
            ledger.keep(question.digest(options.endpoint), Call(text, "stop", 200, 40), 0.0)
    return options


def measure(place: Path, count: int) -> list[dict[str, Any]]:
    """Of planning, and of all that comes after it: rows, seconds, MiB at most."""
    began = time.monotonic()
    options = prepare(place, count)
    filled = {"filled": count, "seconds": time.monotonic() - began}
    said = options.model_dump(mode="json", exclude_defaults=True)
    command = [sys.executable, "-c", _BUILD, json.dumps(said), str(place / "out")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [filled, *map(json.loads, done.stdout.splitlines())]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.build_rows", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    how = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=how.folder) as name:
        for told in measure(Path(name), how.rows):
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
