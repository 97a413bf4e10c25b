"""How fast the data builder's quality gates are, and how much memory near duplicates need.

    python -m benchmarks.gates --rows 1000000

The rows are sentences made of a small vocabulary in both languages (11 English words and 17 Chinese characters on
average, as captions have), a picture each; one in fifty comes again with a word more. All pure gates and then near
duplicates look at every row, in one process, and the tally counts it. A sentence means nothing, but has a number, a
colour and a place to be looked at by the gates, as captions have. Rates are by processor time.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from training.gates.duplicates import NearDuplicates
from training.gates.gate import Reject
from training.gates.inspection import inspect, measure, passes, pure_gates
from training.gates.row import Line, Row
from training.gates.tally import Tally

BATCH = 1000
MOST_MIB = 1024
NUMBERS = [("two", "两"), ("three", "三"), ("four", "四"), ("five", "五"), ("6", "6"), ("twelve", "十二")]
COLOURS = [
    ("red", "红色"),
    ("blue", "蓝色"),
    ("white", "白色"),
    ("black", "黑色"),
    ("green", "绿色"),
    ("brown", "棕色"),
]
THINGS = [
    *(
        ("cats", "只猫"),
        ("dogs", "只狗"),
        ("birds", "只鸟"),
        ("sheep", "只羊"),
        ("horses", "匹马"),
        ("elephants", "头大象"),
    ),
    *(("chairs", "把椅子"), ("cups", "个杯子"), ("cars", "辆汽车"), ("boats", "艘小船"), ("umbrellas", "把雨伞")),
    *(
        ("bicycles", "辆自行车"),
        ("suitcases", "个行李箱"),
        ("kites", "只风筝"),
        ("trains", "列火车"),
        ("signs", "块牌子"),
    ),
]
DOINGS = [
    ("standing", "站着"),
    ("lying", "躺着"),
    ("shown", "出现"),
    ("waiting", "等着"),
    ("seen", "可见"),
    ("resting", "歇着"),
]
PLACES = [
    *(
        ("a table", "桌子"),
        ("a river", "河流"),
        ("the beach", "海滩"),
        ("a street", "街道"),
        ("an old house", "老房子"),
    ),
    *(
        ("a bridge", "桥"),
        ("the window", "窗户"),
        ("a tall tree", "大树"),
        ("a field", "田野"),
        ("the station", "车站"),
    ),
    *(("a museum", "博物馆"), ("the market", "集市"), ("a garden wall", "花园围墙"), ("a wooden fence", "木栅栏")),
]
TIMES = [
    ("at night", "夜里"),
    ("in winter", "冬天"),
    ("at noon", "中午"),
    ("in the rain", "雨中"),
    ("in the morning", "早晨"),
]


def rows(count: int, seed: int = 0) -> Iterator[Row]:
    draw = random.Random(seed)
    last = None
    for number in range(count):
        if last is not None and number % 50 == 49:
            english, chinese = last[0].replace(".", " again."), last[1]
        else:
            english, chinese = _sentence(draw)
            last = english, chinese
        picture = str(number - (number % 50 == 49))
        yield Row(
            f"{number}",
            "caption",
            "en",
            (Line("caption", english),),
            {"zh": (Line("caption", chinese),)},
            image_digest=picture,
        )


def _sentence(draw: random.Random) -> tuple[str, str]:
    many, colour, thing, doing, place, other, when = map(
        draw.choice, (NUMBERS, COLOURS, THINGS, DOINGS, PLACES, PLACES, TIMES)
    )
    english = f"{many[0]} {colour[0]} {thing[0]} {doing[0]} between {place[0]} and {other[0]} {when[0]}."
    chinese = f"{when[1]}，{many[1]}{thing[1][0]}{colour[1]}的{thing[1][1:]}在{place[1]}和{other[1]}之间{doing[1]}。"
    return english.capitalize(), chinese


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gates", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    given = parser.parse_args()
    gates, tally = pure_gates(), Tally()
    spent = {"pure gates": 0.0, "near duplicates": 0.0, "tally": 0.0}
    source = rows(given.rows)
    with tempfile.TemporaryDirectory() as folder, NearDuplicates(Path(folder)) as duplicates:
        while batch := list(islice(source, BATCH)):
            began = time.process_time()
            found = [inspect(row, gates, tally) for row in batch]
            looked = time.process_time()
            for row, findings in zip(batch, found, strict=True):
                if passes(findings):
                    finding = duplicates.check(row)
                    if isinstance(finding, Reject):
                        findings.append(finding)
                    else:
                        duplicates.keep(row)
            compared = time.process_time()
            for row, findings in zip(batch, found, strict=True):
                measure(row, tally)
                tally.verdict(row, findings)
            spent["pure gates"] += looked - began
            spent["near duplicates"] += compared - looked
            spent["tally"] += time.process_time() - compared
        disk = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
    state = tally.state()
    print(f"{given.rows} rows, {tally.accepted} accepted, rejects {state['rejects']}, doubts {state['doubts']}")
    for name, seconds in spent.items():
        print(f"{name:16} {given.rows / seconds:9.0f} rows/s {1e6 * seconds / given.rows:7.0f} us a row")
    print(f"{'all':16} {given.rows / sum(spent.values()):9.0f} rows/s")
    print(f"near duplicates on disk {disk:.0f} MiB, peak resident memory {peak_mib():.0f} MiB")
    if peak_mib() > MOST_MIB:
        sys.exit(f"more than {MOST_MIB} MiB")


if __name__ == "__main__":
    main()
