"""The report of a build: one HTML file that needs nothing else, and the same as JSON for programs.

What it shows is a tally, the manifest, and what the questions cost. It opens from a disk or a bucket, in light and
dark, on a telephone, in the browser's language.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from training.gates.page_charts import bars, histogram, share, table, tree
from training.gates.page_style import SCRIPT, STYLE
from training.gates.page_words import both
from training.gates.tally import ACCEPTED, Tally

HTML, JSON = "report.html", "report.json"
Values = Mapping[str, Any]


def write_report(tally: Tally, manifest: Values, folder: Path, *, account: Values | None = None) -> None:
    """Writes report.html and report.json to `folder`, each whole or not at all.

    `account` is what was spent, by name ("requests", "prompt_tokens", "dollars" …); equal runs have equal reports
    only where it is equal.
    """
    said = {"tally": tally.state(), "manifest": dict(manifest), "account": dict(account or {})}
    _write(folder / JSON, json.dumps(said, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    _write(folder / HTML, page(tally, manifest, account or {}))


def page(tally: Tally, manifest: Values, account: Values) -> str:
    """The HTML file."""
    name = str(manifest.get("name", ""))
    title = f"Quality report{': ' + name if name else ''}"
    parts = [
        f"<header><h1>{both('Quality report')} {escape(name)}</h1>"
        '<button id="language" type="button"><span class="en">中文</span><span class="zh">English</span></button>'
        "</header>",
        _tiles(tally, account),
        _findings(tally),
        _gates(tally),
        _measured(tally),
        _samples(tally),
        _tables(tally, manifest, account),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Even a sample that got through the escaping could load and send nothing.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _tiles(tally: Tally, account: Values) -> str:
    rejected, doubts = tally.rows - tally.accepted, sum(tally.doubts.values())
    tiles = [
        _tile("rows", f"{tally.rows:,}"),
        _tile("accepted", f"{tally.accepted:,}", "good", share(tally.accepted, tally.rows)),
        _tile("rejected", f"{rejected:,}", "bad", share(rejected, tally.rows)),
        _tile("doubts", f"{doubts:,}", "doubtful", share(doubts, tally.rows)),
    ]
    tokens = sum(int(account.get(name, 0)) for name in ("prompt_tokens", "completion_tokens"))
    if tokens:
        tiles.append(_tile("tokens", f"{tokens:,}"))
    if "dollars" in account:
        tiles.append(_tile("dollars", f"{float(account['dollars']):,.2f}"))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _tile(name: str, value: str, kind: str = "", more: str = "") -> str:
    return f'<div class="tile"><b class="{kind}">{value}</b>{both(name)} <span class="soft">{more}</span></div>'


def _findings(tally: Tally) -> str:
    state = tally.state()
    rejects, doubts = state["rejects"], state["doubts"]
    none = {
        name: f"<p>{both(text)}</p>" for name, text in (("r", "No row was rejected."), ("d", "No row was doubted."))
    }
    return (
        _head("Why rows were rejected", "A row that several gates reject is counted at each of them.")
        + (f'<div class="card">{bars(rejects, tally.rows)}</div>' if rejects else none["r"])
        + _head("Doubts", "Doubtful rows are kept: what was seen may be right.")
        + (f'<div class="card">{bars(doubts, tally.rows, kind="doubts")}</div>' if doubts else none["d"])
    )


def _gates(tally: Tally) -> str:
    rows: list[list[str | int]] = []
    for gate in dict.fromkeys([*tally.looked, *(gate for gate, _ in (*tally.rejects, *tally.doubts))]):
        rejects, doubts = (
            sum(n for (name, _), n in some.items() if name == gate) for some in (tally.rejects, tally.doubts)
        )
        looked = tally.looked.get(gate, 0)
        rows.append([both(gate), looked, rejects, share(rejects, looked), doubts])
    return _head("Gates") + table(["gate", "looked at", "rejected", "share", "doubted"], rows)


def _measured(tally: Tally) -> str:
    drawn = [histogram(name, held) for name, held in sorted(tally.histograms.items()) if held.count]
    return f'{_head("Measured")}<div class="figures">{"".join(drawn)}</div>' if drawn else ""


def _samples(tally: Tally) -> str:
    parts = [_head("Samples", "Drawn by the rows' digests: the same in every run over the same rows.")]
    # Accepted, rejected, doubted.
    for verdict in sorted(tally.samples.verdicts(), key=lambda one: (one.startswith("doubted"), one)):
        kind, _, about = verdict.partition("/")
        head = f"{both(kind)}: {both(about)}"
        cards = "".join(_sample(entry) for entry in tally.samples.entries(verdict))
        opened = " open" if kind == ACCEPTED else ""
        parts.append(f'<details{opened}><summary>{head}</summary><div class="samples">{cards}</div></details>')
    return "".join(parts)


def _sample(entry: Values) -> str:
    image = str(entry.get("image", ""))
    shown = f'<img src="{escape(image)}" alt="">' if image.startswith("data:image/jpeg;base64,") else ""
    reason = ""
    if "kind" in entry:
        reason = f'<p class="reason"><b>{both(str(entry["kind"]))}</b> {escape(str(entry.get("detail", "")))}</p>'
    lines = "".join(
        f'<p><span class="role">{both(language)} {both(str(role))}</span>{escape(str(text))}</p>'
        for language, said in entry["texts"].items()
        for role, text in said
    )
    foot = f'<p class="soft">{escape(str(entry["key"]))} · {both(str(entry["task"]))}</p>'
    return f'<article class="card sample">{shown}<div>{reason}{lines}{foot}</div></article>'


def _tables(tally: Tally, manifest: Values, account: Values) -> str:
    tasks: list[list[str | int]] = [
        [both(task), count, share(count, tally.rows)] for task, count in sorted(tally.by_task.items())
    ]
    parts = [_head("Tasks"), table(["task", "rows", "share"], tasks)]
    for name, values in (("Account", account), ("Manifest", manifest)):
        if values:
            parts += [_head(name), tree(values)]
    return "".join(parts)


def _head(name: str, note: str = "") -> str:
    return f"<h2>{both(name)}</h2>" + (f'<p class="note">{both(note)}</p>' if note else "")


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, "utf-8")
    draft.replace(path)
