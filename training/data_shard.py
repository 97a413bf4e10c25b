"""`python -m training.data_shard JOB --stage NAME --shard K --output DIR`: one piece of a data stage.

A worker of the operator's data queue runs it, as often as it is told to: a piece that is there is not built again. The
last line on stdout is JSON with the piece's digest, the last line on stderr the reason of a failure; the exit code is
one of training/errors.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import traceback
from pathlib import Path

from training.errors import BadConfig, TrainingError
from training.job import load
from training.pieces import Pieces
from training.stage_folder import StageFolder


def build_piece(job_file: Path, name: str, shard: int, output: Path) -> str:
    """Its digest. Raises TrainingError, and what the builder raises."""
    stage = load(job_file).stage(name)
    if stage.type != "data":
        raise BadConfig(f"stage {name!r} is of type {stage.type!r}, only a stage of type data has pieces")
    return Pieces(stage, StageFolder(output / name)).build(shard)


def main() -> None:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    parser = argparse.ArgumentParser(prog="python -m training.data_shard", description=__doc__)
    parser.add_argument("job", type=Path, help="the TrainingJob's YAML file")
    parser.add_argument("--stage", required=True)
    parser.add_argument("--shard", type=int, required=True, help="which piece, from 0")
    parser.add_argument("--output", type=Path, required=True, help="the job's output folder")
    how = parser.parse_args()
    try:
        digest = build_piece(how.job, how.stage, how.shard, how.output)
    except TrainingError as error:
        print(f"{how.stage}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001  the builder's, whatever it is: told in full, and last in one line
        traceback.print_exc()
        print(f"{how.stage}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(TrainingError.exit_code)
    print(json.dumps({"shard": how.shard, "digest": digest}), flush=True)


if __name__ == "__main__":
    main()
