"""How often do the gates reject what is right? Counted on pairs that people translated.

    python -m training.gates.calibrate                          the examples that come with checkpoints/ziya-tiny
    python -m training.gates.calibrate --packages FOLDER        and CLDR's English and Chinese names of emoji, from the
                                                                npm packages that `training.tiny.fetch` installs
    python -m training.gates.calibrate --stamps FOLDER          and the captions of Tux Paint's stamps (the folder of
                                                                Debian's tuxpaint-stamps-default)
    python -m training.gates.calibrate --catalogues FOLDER      and the messages of programs in FOLDER's *.mo files,
                                                                as in /usr/share/locale/zh_CN/LC_MESSAGES

Every reject of such a pair is false, or the translators left something out: the worst of each kind are printed, to
be judged. Prints too where the lengths' ratios lie, the chrF of unrelated pairs, and the ITC scores of the examples
with their own and with other pictures.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from training.gates.back_translation import similarity
from training.gates.gate import Gate, Reject
from training.gates.inspection import inspect, pure_gates
from training.gates.lengths import length_ratio
from training.gates.row import Line, Row
from training.gates.tally import Tally
from training.gates.true_pairs import cldr_names, examples, messages, stamp_captions

_SEED = 20231012
_UNRELATED = 2000
_QUANTILES = (0.001, 0.01, 0.5, 0.99, 0.999)
TINY = Path("checkpoints/ziya-tiny")


def rates(pairs: Sequence[tuple[str, str]], gates: Sequence[Gate]) -> tuple[Tally, Mapping[str, list[str]]]:
    """The tally of the pairs as captions, and of each kind of finding the details."""
    tally, details = Tally(samples=0), dict[str, list[str]]()
    for number, (english, chinese) in enumerate(pairs):
        row = caption(str(number), english, chinese)
        found = inspect(row, gates, tally)
        tally.verdict(row, found)
        for finding in found:
            word = "reject" if isinstance(finding, Reject) else "doubt"
            details.setdefault(f"{finding.gate} | {word} | {finding.kind}", []).append(finding.detail)
    return tally, details


def caption(key: str, english: str, chinese: str) -> Row:
    return Row(key, "caption", "en", (Line("caption", english),), {"zh": (Line("caption", chinese),)})


def unrelated(texts: Sequence[str]) -> list[float]:
    """chrF of texts with others: what a back-translation that says something else would have."""
    draw = random.Random(_SEED)
    pairs = (draw.sample(texts, 2) for _ in range(_UNRELATED))
    return [similarity((Line("caption", one),), [other]) for one, other in pairs]


def report(name: str, pairs: Sequence[tuple[str, str]], shown: int) -> Iterator[str]:
    """The lines that are printed of one source of pairs."""
    tally, details = rates(pairs, pure_gates())
    rejected = tally.rows - tally.accepted
    yield f"\n{name}: {len(pairs)} pairs, {rejected} rejected ({_percent(rejected, len(pairs))})"
    yield "gate | verdict | kind | pairs | share"
    for kind, found in sorted(details.items(), key=lambda one: (one[0].split(" | ")[1] != "reject", -len(one[1]))):
        yield f"{kind} | {len(found)} | {_percent(len(found), len(pairs))}"
        yield from (f"    {detail}" for detail in found[:shown])
    ratios = [length_ratio(english, chinese) for english, chinese in pairs]
    yield f"length ratio at {_QUANTILES}: {_at(ratios)}"
    if len(pairs) > 1:
        yield f"chrF of unrelated pairs at 0.5, 0.95: {_at(unrelated([english for english, _ in pairs]), (0.5, 0.95))}"


def agreements(checkpoint: Path) -> Iterator[str]:
    """ITC scores of the examples with the right and with other pictures."""
    from training.gates.agreement import Agreement  # noqa: PLC0415  torch takes seconds

    folder = checkpoint / "examples"
    entries = json.loads((folder / "examples.json").read_text("utf-8"))
    gate = Agreement(checkpoint)
    scores: dict[bool, list[float]] = {True: [], False: []}
    for said in entries:
        rows = [
            Row(
                f"{said['name_en']} / {shown['file']}",
                "caption",
                "en",
                (Line("caption", said["name_en"]),),
                {"zh": (Line("caption", said["name_zh"]),)},
                image=(folder / shown["file"]).read_bytes,
            )
            for shown in entries
        ]
        for shown, score in zip(entries, gate.scores(rows), strict=True):
            scores[shown is said].append(score or 0.0)
    yield f"\nagreement by {checkpoint.name}: {len(scores[True])} right and {len(scores[False])} wrong pairs"
    for least in (0.34, 0.36, 0.38, 0.40, 0.45):
        lost, caught = (sum(score < least for score in some) / len(some) for some in (scores[True], scores[False]))
        yield f"at least {least:.2f}: rejects {lost:.1%} of the right and {caught:.1%} of the wrong pairs"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.2f} %"


def _at(values: Sequence[float], quantiles: Sequence[float] = _QUANTILES) -> str:
    return ", ".join(f"{value:.2f}" for value in np.quantile(values, quantiles))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.gates.calibrate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=TINY)
    parser.add_argument("--packages", type=Path, help="node_modules with cldr-annotations-full")
    parser.add_argument("--stamps", type=Path)
    parser.add_argument("--catalogues", type=Path)
    parser.add_argument("--show", type=int, default=0, help="details to print of each kind")
    given = parser.parse_args()
    sources = {"examples of ziya-tiny": examples(given.checkpoint / "examples" / "examples.json")}
    if given.packages:
        sources["CLDR names"] = cldr_names(given.packages)
    if given.stamps:
        sources["Tux Paint stamps"] = stamp_captions(given.stamps)
    if given.catalogues:
        sources["messages of programs"] = messages(given.catalogues)
    for name, pairs in sources.items():
        for line in report(name, pairs, given.show):
            print(line)
    for line in agreements(given.checkpoint):
        print(line)


if __name__ == "__main__":
    main()
