"""What a build tells of the whole, from what its pieces tell: index.json, manifest.json and the report.

Nothing in a manifest depends on when, where or how fast something was made: equal builds have equal manifests.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.build.checks import PROMPTS
from training.build.demonstrations import load_demonstrations
from training.build.options import BuildOptions
from training.build.piece import Piece
from training.data.index import INDEX, Index
from training.data.report import BadSamples
from training.data.writer import all_labels
from training.errors import BadData
from training.gates.page import write_report
from training.gates.tally import Tally
from training.llm.ledger import Ledger
from training.pieces import KEPT
from training.stage_folder import write_json

FORMAT, VERSION = "ziya-build", 1
MANIFEST = "manifest.json"


def write_manifest(folder: Path, pieces: Sequence[Piece], options: BuildOptions) -> Index:
    """index.json, manifest.json and the report of all pieces. Raises BadData where they do not belong together."""
    _refuse_mixed(folder, pieces, options)
    index = _joined(pieces, folder.absolute().name)
    tally, bad, licences = Tally(), BadSamples(options.bad_share), Counter[str]()
    for piece in pieces:
        tally.merge(Tally.restore(piece.tally))
        _add(bad, piece.bad)
        licences.update(piece.licences)
    if not index.samples:
        raise BadData(f"nothing of {options.input} was left: {bad.summary() or json.dumps(tally.state()['rejects'])}")
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "dataset": index.digest,
        "layout": pieces[0].layout,
        "inputs": pieces[0].inputs,
        "input": pieces[0].input,
        "options": options.of_the_result,
        "prompts": hashlib.sha256("\0".join(PROMPTS).encode()).hexdigest(),
        "demonstrations": load_demonstrations(options.demonstration_path).digest,
        "agreement": pieces[0].agreement,
        "licences": dict(sorted(licences.items())),
        "rows": sum(piece.rows[1] - piece.rows[0] for piece in pieces),
        "records": index.samples,
        "empty": sum(piece.empty for piece in pieces),
        "bad": bad.state(),
        "made": {"rows": tally.rows, "accepted": tally.accepted, "rejects": tally.state()["rejects"]},
    }
    write_json(folder / MANIFEST, manifest)
    write_report(tally, {"name": index.name, **manifest}, folder, account=_account(folder, options))
    _write(folder / INDEX, index.to_bytes())
    return index


def _refuse_mixed(folder: Path, pieces: Sequence[Piece], options: BuildOptions) -> None:
    if len({piece.input for piece in pieces}) > 1:
        raise BadData(f"{options.input} changed while it was built: remove {folder} and build it again")
    if len({json.dumps(piece.agreement, sort_keys=True) for piece in pieces}) > 1:
        raise BadData(f"{options.gates.agreement} changed while it was used: remove {folder} and build it again")


def _account(folder: Path, options: BuildOptions) -> dict[str, Any]:
    """What was paid, of one ledger or of all pieces' own."""
    paths = [Path(options.ledger)] if options.ledger else sorted((folder / KEPT).glob("ledger-*.sqlite"))
    total: Counter[str] = Counter()
    for path in paths:
        if path.exists():
            with Ledger(path) as ledger:
                spent = ledger.spent()
            total.update({name: getattr(spent, name) for name in ("requests", "prompt_tokens", "completion_tokens")})
            total["dollars"] += spent.dollars  # type: ignore[assignment]
    return dict(total)


def _joined(pieces: Sequence[Piece], name: str) -> Index:
    """One index of the pieces' shards, in order."""
    written = [one for piece in pieces for one in piece.written]
    return Index(name, tuple(shard for shard, _ in written), {}, all_labels(labels for _, labels in written))


def _add(bad: BadSamples, state: Mapping[str, Any]) -> None:
    other = BadSamples(1.0)
    other.restore(state)
    bad.seen, bad.bad = bad.seen + other.seen, bad.bad + other.bad
    bad.kinds.update(other.kinds)
    for kind, named in other.examples.items():
        mine = bad.examples.setdefault(kind, {})
        for key, reason in named.items():
            if len(mine) < 20:
                mine.setdefault(key, reason)


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(content)
    draft.replace(path)
