"""What it costs to find the near duplicates of a dataset that was built in pieces, when all pieces are there.

    python -m benchmarks.join_rows [--rows 1000000] [--pieces 20] [--folder DIR]

The rows are those of benchmarks/gates.py: one in fifty comes again with a word more. A process of its own writes what
pieces leave of them; then one gate goes through all, as `join` does before it writes shards anew. Seconds are processor
time, the largest resident size is that of the process that joins.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from benchmarks.gates import rows
from training.build.candidates import Candidates
from training.build.piece import Piece
from training.build.verdicts import Unjoined, judge, read_verdict
from training.data.report import BadSamples
from training.gates.tally import Tally


def leave(place: Path, count: int, pieces: int) -> None:
    """Candidates and counts of each piece, a record a row."""
    source = rows(count)
    for number in range(pieces):
        first, end = number * count // pieces, (number + 1) * count // pieces
        folder, tally = place / f"{number:05d}", Tally()
        began = time.process_time()
        with Candidates(folder) as candidates:
            for record, row in enumerate(islice(source, end - first)):
                tally.note(row, ())
                candidates.add(record, "caption", 0, row)
        seconds = time.process_time() - began
        bad, state = BadSamples(1.0).state(), tally.state()
        Piece(number, (first, end), "json", "", (), None, 0, {}, bad, state).write(folder)
        if number == 0:
            print(json.dumps({"leaving_us_a_row": round(1e6 * seconds / (end - first))}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.join_rows", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pieces", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    how = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=how.folder) as name:
        place = Path(name)
        leaving = get_context("spawn").Process(target=leave, args=(place, how.rows, how.pieces))
        leaving.start()
        leaving.join()
        disk = sum(path.stat().st_size for path in place.rglob("*")) / 2**20
        began = time.process_time()
        judge(place, [Unjoined(Piece.read(one, number), one) for number, one in enumerate(sorted(place.iterdir()))])
        seconds = time.process_time() - began
        lost = sum(len(read_verdict(place, number).losses) for number in range(how.pieces))
    told = {"rows": how.rows, "lost": lost, "seconds": round(seconds, 1), "us_a_row": round(1e6 * seconds / how.rows)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**told, "left_MiB": round(disk), "peak_MiB": round(peak)}))


if __name__ == "__main__":
    main()
