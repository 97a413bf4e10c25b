"""A build whose questions are all answered before it begins, as after a kill: no server is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.build_rules import answer
from training.build.asking import questions
from training.build.options import read_options
from training.build.rows import open_rows
from training.build.work import Plan
from training.job import Stage
from training.llm.call import Call
from training.llm.ledger import Ledger
from training.pieces import Pieces
from training.stage_folder import StageFolder


def filled(place: Path, source: Path, **more: Any) -> dict[str, Any]:
    """A data stage's options. The answers are those of the tests' language model."""
    told = {"input": str(source), "url": "http://127.0.0.1:9/v1", "model": "translator", "licence": "CC0-1.0"}
    told |= {"ledger": str(place / "ledger.sqlite"), "gates": {"backTranslation": 0}, **more}
    options = read_options(told, "this")
    with Ledger(place / "ledger.sqlite") as ledger:
        for question in questions(Plan(options), open_rows(options)):
            text = json.dumps(answer(question.messages, question.schema), ensure_ascii=False)
            ledger.keep(question.digest(options.endpoint), Call(text, "stop", 200, 40), 0.0)
    return told


def stage(options: Mapping[str, Any], shards: int) -> Stage:
    told = {"name": "out", "type": "data", "builder": "training.build.stage", "options": options, "shards": shards}
    return Stage.model_validate(told)


def built(output: Path, options: Mapping[str, Any], shards: int) -> Path:
    """The stage's folder when all its pieces are built, in this process."""
    pieces = Pieces(stage(options, shards), StageFolder(output))
    for number in reversed(pieces.missing()):
        pieces.build(number)
    return output
