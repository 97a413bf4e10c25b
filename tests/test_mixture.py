"""Orders are exact permutations, mixtures keep their ratios, cursors resume anywhere; bad samples are counted."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.mixture import Cursor, Mixture
from training.data.order import EpochOrder, permutation
from training.data.record import Draw
from training.data.report import BadSamples
from training.data.shards import Dataset
from training.data.writer import write_dataset
from training.errors import BadConfig, BadData
from training.recipe import Source

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)
SEEDS = st.integers(-(2**63), 2**63)


def test_permutation_never_changes() -> None:
    # Written down from numpy 1.26: a resumed run must see the order that it began with.
    assert permutation(8, 42, 0).tolist() == [4, 1, 3, 6, 0, 7, 2, 5]
    words = np.random.PCG64(np.random.SeedSequence([42, 0])).random_raw(8)
    assert permutation(8, 42, 0).tolist() == sorted(range(8), key=words.tolist().__getitem__)


@given(SIZES, SEEDS, st.integers(1, 5), st.integers(0, 3))
def test_every_epoch_is_a_permutation_and_goes_through_few_shards_at_a_time(
    sizes: list[int], seed: int, window: int, epoch: int
) -> None:
    order, total = EpochOrder(sizes, seed, window), sum(sizes)
    drawn = [order.item(k) for k in range(epoch * total, (epoch + 1) * total)]
    assert sorted(item for item, _ in drawn) == list(range(total))
    assert {number for _, number in drawn} == {epoch}
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    shards = [int(shard_of[item]) for item, _ in drawn]
    # Shards are begun and finished in order of windows: no more than a window of them is ever needed.
    spans = [(shards.index(shard), len(shards) - 1 - shards[::-1].index(shard)) for shard in set(shards)]
    open_at = [sum(begin <= at <= end for begin, end in spans) for at in range(total)]
    assert max(open_at) <= window


@given(SIZES, SEEDS, st.lists(st.integers(0, 200), min_size=1, max_size=30))
def test_a_draw_depends_on_nothing_drawn_before(sizes: list[int], seed: int, places: list[int]) -> None:
    order = EpochOrder(sizes, seed, 2)
    assert [order.item(k) for k in places] == [EpochOrder(sizes, seed, 2).item(k) for k in places]
    assert [pickle.loads(pickle.dumps(order)).item(k) for k in places] == [order.item(k) for k in places]


def test_epochs_windows_and_seeds_differ() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        order = EpochOrder([50] * 40, seed)
        return [order.item(k)[0] for k in range(2000 * number, 2000 * (number + 1))]

    assert epoch(1, 0) != epoch(1, 1)
    assert epoch(1, 0) != epoch(2, 0)
    # Windows of eight shards: the first fifth of an epoch comes from a fifth of the shards, well mixed.
    first = [item // 50 for item in epoch(1, 0)[:400]]
    assert len(set(first)) == 8
    assert len(set(first[:50])) >= 6
    with pytest.raises(BadData, match="without samples"):
        EpochOrder([0, 0], 1)


def mixture(ratios: list[float], seed: int = 3) -> Mixture:
    sources = [Source(data=f"d{n}", ratio=ratio) for n, ratio in enumerate(ratios)]
    return Mixture(sources, [EpochOrder([3, 4, n + 1], seed + n) for n in range(len(ratios))], seed)


RATIOS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6)
BATCHES = st.lists(st.integers(1, 40), min_size=1, max_size=25)


@given(RATIOS, BATCHES)
@settings(deadline=None)
def test_ratios_hold_over_the_whole_run(ratios: list[float], batches: list[int]) -> None:
    mixed = mixture(ratios)
    shares = [Fraction(ratio) / sum(map(Fraction, ratios)) for ratio in ratios]
    cursor, draws = mixed.start(), list[Draw]()
    for batch in batches:
        step, cursor = mixed.plan(cursor, batch)
        assert len(step) == batch
        draws += step
        assert cursor.position == sum(cursor.taken) == len(draws)
        assert cursor.taken == tuple(Counter(draw.source for draw in draws)[n] for n in range(len(ratios)))
        for taken, share in zip(cursor.taken, shares, strict=True):
            # Each source is less than one sample ahead; together they make up for one another.
            assert -len(ratios) < taken - share * cursor.position < 1
    assert [draw.position for draw in draws] == list(range(len(draws)))
    for n, order in enumerate(mixed.orders):
        mine = [(draw.item, draw.epoch) for draw in draws if draw.source == n]
        assert mine == [order.item(k) for k in range(len(mine))]


def test_shares_worked_by_hand() -> None:
    mixed, cursor, taken = mixture([3.0, 2.0, 1.0]), Cursor(0, (0, 0, 0)), []
    for _ in range(3):
        _, cursor = mixed.plan(cursor, 4)
        taken.append(cursor.taken)
    # After 4: 2, 4/3, 2/3 are owed; after 8: 4, 8/3, 4/3; after 12: 6, 4, 2.
    assert taken == [(2, 1, 1), (4, 3, 1), (6, 4, 2)]
    ahead, _ = mixed.plan(Cursor(6, (0, 0, 6)), 6)
    # 6, 4 and -4 are owed, of which 6 can be given: the first two give two less each.
    assert Counter(draw.source for draw in ahead) == {0: 4, 1: 2}


@given(RATIOS, st.integers(1, 16), st.integers(0, 12), SEEDS)
@settings(deadline=None)
def test_resume_anywhere_equals_undisturbed(ratios: list[float], batch: int, stop: int, seed: int) -> None:
    mixed = mixture(ratios, seed)
    cursor, steps, cursors = mixed.start(), [], []
    for _ in range(16):
        cursors.append(mixed.to_json(cursor))
        step, cursor = mixed.plan(cursor, batch)
        steps.append(step)
    fresh = mixture(ratios, seed)
    resumed = fresh.cursor(json.loads(json.dumps(cursors[stop])))
    for step in steps[stop:]:
        again, resumed = fresh.plan(resumed, batch)
        assert again == step
    assert resumed == cursor


def test_far_into_a_run_is_as_quick_as_its_start() -> None:
    """Nothing is replayed: a cursor after 10^12 samples of millions of items gives its batch at once."""
    sizes = [1000] * 4000
    mixed = Mixture([Source("a"), Source("b", ratio=3)], [EpochOrder(sizes, 1), EpochOrder(sizes, 2)], 0)
    draws, cursor = mixed.plan(Cursor(10**12, (10**12 // 4, 3 * 10**12 // 4)), 64)
    assert cursor.taken == (10**12 // 4 + 16, 3 * 10**12 // 4 + 48)
    assert {draw.epoch for draw in draws} == {10**12 // 4 // 4_000_000, 3 * 10**12 // 4 // 4_000_000}


def test_another_mixture_is_refused() -> None:
    mixed = mixture([1.0, 2.0])
    state = mixed.to_json(mixed.plan(mixed.start(), 5)[1])
    assert mixed.cursor(state) == Cursor(5, (2, 3))
    orders = mixed.orders
    others = [
        mixture([1.0, 2.5]),
        mixture([1.0, 2.0], seed=4),
        Mixture([Source("d0"), Source("d1", ratio=2.0, language="zh")], orders, 3),
        Mixture(mixed.sources, orders, 3, ["digest", "other"]),
    ]
    for other in others:
        with pytest.raises(BadConfig, match=f"{mixed.digest[:12]}, this recipe has {other.digest[:12]}"):
            other.cursor(state)
    moved = Mixture([Source("elsewhere"), Source("s3://d1", ratio=2.0)], orders, 3)
    assert moved.cursor(state) == Cursor(5, (2, 3))
    for broken in ({"taken": [2, 2]}, {"taken": [5]}, {"taken": "2"}, {"position": -1}, {"taken": [2, 3.0]}):
        with pytest.raises(BadConfig):
            mixed.cursor({**state, **broken})
    for ratio in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(BadConfig, match="source caption/en: the ratio must be above 0"):
            mixture([ratio])
    with pytest.raises(BadConfig, match="at least one source"):
        mixture([])


def test_sources_of_one_dataset_have_orders_of_their_own(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "set", [({"caption": str(n)}, []) for n in range(50)], name="n")
    sources = [Source("x", language="en"), Source("x", language="zh")]
    mixed = Mixture.over(sources, [dataset, dataset], 7)
    draws, _ = mixed.plan(mixed.start(), 40)
    items = [[draw.item for draw in draws if draw.source == n] for n in (0, 1)]
    assert len(items[0]) == len(items[1]) == 20
    assert items[0] != items[1]
    assert mixed.plan(mixed.start(), 40)[0] == Mixture.over(sources, [dataset, dataset], 7).plan(mixed.start(), 40)[0]
    assert mixed.digest != Mixture.over(sources, [dataset, _other(tmp_path)], 7).digest


def test_a_mixture_of_single_samples_never_changes() -> None:
    """Written down before sources could take several samples of a record: runs of then go on as they began."""
    mixed = mixture([3.0, 2.0, 1.0])
    assert mixed.digest == "8df9072c9a31a98e2d079f38aba2fc3247ec6b552a0142e64e3b85ef81aaeb93"
    draws, _ = mixed.plan(mixed.start(), 12)
    sources, items = [0, 1, 1, 1, 0, 2, 0, 2, 1, 0, 0, 0], [0, 4, 1, 6, 5, 6, 4, 0, 3, 2, 1, 3]
    assert draws == tuple(Draw(*pair, 0, n, n) for n, pair in enumerate(zip(sources, items, strict=True)))


def visiting(tmp_path: Path, *sources: Source, seed: int = 7) -> Mixture:
    datasets = {
        name: write_dataset(tmp_path / name, [({"caption": f"{name} {n}"}, []) for n in range(size)], name=name)
        for name, size in (("x", 23), ("y", 11))
        if not (tmp_path / name).exists()
    } or {name: Dataset.open(str(tmp_path / name)) for name in ("x", "y")}
    return Mixture.over(sources, [datasets[source.data] for source in sources], seed)


EN, ZH = Source("x", samples_each=5), Source("x", language="zh", samples_each=5)


def test_samples_of_a_record_stand_side_by_side_in_both_languages(tmp_path: Path) -> None:
    mixed = visiting(tmp_path, EN, ZH)
    draws, cursor = mixed.plan(mixed.start(), 40)
    assert cursor.taken == (20, 20)
    visits = [draws[start : start + 10] for start in range(0, 40, 10)]
    for start, visit in zip(range(0, 40, 10), visits, strict=True):
        assert len({(draw.item, draw.epoch) for draw in visit}) == 1
        assert {draw.visit for draw in visit} == {start}
        assert [(draw.source, draw.turn) for draw in visit] == [(n, turn) for n in (0, 1) for turn in range(5)]
    assert len({visit[0].item for visit in visits}) == 4
    assert [draw.position for draw in draws] == list(range(40))


def test_whole_epochs_of_visits_take_of_every_record_as_many_as_asked_for(tmp_path: Path) -> None:
    mixed, cursor, draws = visiting(tmp_path, EN, ZH), Cursor(0, (0, 0)), list[Draw]()
    for _ in range(23):
        step, cursor = mixed.plan(cursor, 10)
        draws += step
    every = [(source, item, 0, turn) for source in (0, 1) for item in range(23) for turn in range(5)]
    assert sorted((draw.source, draw.item, draw.epoch, draw.turn) for draw in draws) == every


@given(st.lists(st.integers(1, 33), min_size=1, max_size=12), st.sampled_from([0.5, 1.0, 3.0]))
@settings(deadline=None)
def test_ratios_hold_however_many_samples_a_record_gives(
    tmp_path_factory: pytest.TempPathFactory, batches: list[int], ratio: float
) -> None:
    folder = tmp_path_factory.getbasetemp() / "visited"
    sources = [replace(EN, ratio=ratio), ZH, Source("y", samples_each=3, ratio=0.7), Source("x", task="ocr")]
    mixed = visiting(folder, *sources)
    total = sum(Fraction(source.ratio) for source in sources)
    cursor, cursors, steps = mixed.start(), list[Cursor](), list[tuple[Draw, ...]]()
    for batch in batches:
        cursors.append(cursor)
        step, cursor = mixed.plan(cursor, batch)
        steps.append(step)
        for taken, source in zip(cursor.taken, sources, strict=True):
            assert -len(sources) < taken - Fraction(source.ratio) / total * cursor.position < 1
        # A visit is one record's, and whole within the step.
        for visit in {draw.visit for draw in step}:
            mine = [draw for draw in step if draw.visit == visit]
            assert [draw.position for draw in mine] == list(range(visit, visit + len(mine)))
            assert len({(sources[draw.source].data, draw.item, draw.epoch) for draw in mine}) == 1
    for at, step in zip(cursors, steps, strict=True):
        fresh = visiting(folder, *sources)
        assert fresh.plan(fresh.cursor(json.loads(json.dumps(mixed.to_json(at)))), len(step))[0] == step
    for number, source in enumerate(sources):
        each, order = source.samples_each, mixed.orders[number]
        # By their turns in the source: within a step the visits of a source keep their order.
        mine = [draw for step in steps for draw in step if draw.source == number]
        assert [(draw.item, draw.epoch) for draw in mine] == [order.item(k // each) for k in range(len(mine))]
        assert [draw.turn for draw in mine] == [k % each if each > 1 else None for k in range(len(mine))]


def test_other_numbers_of_samples_are_another_mixture(tmp_path: Path) -> None:
    mixed = visiting(tmp_path, EN, ZH)
    assert mixed.digest != visiting(tmp_path, EN, replace(ZH, samples_each=4)).digest
    assert visiting(tmp_path, Source("x")).digest == visiting(tmp_path, Source("x", samples_each=1)).digest
    # Alone with one sample each, a source keeps to an order of its own.
    orders = visiting(tmp_path, EN, ZH, Source("x"), Source("y", samples_each=5)).orders
    assert orders[0].seed == orders[1].seed
    assert len({order.seed for order in orders}) == 3
    with pytest.raises(BadConfig, match="source caption/en: samples_each must be at least 1, not 0"):
        visiting(tmp_path, Source("x", samples_each=0))


def _other(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path / "other", [({"caption": f"other {n}"}, []) for n in range(50)], name="n")


def bad(count: int, reason: str = "wrong JSON: line 1") -> list[tuple[str, str]]:
    return [(f"shard-00000:{n}", reason) for n in range(count)]


def test_too_many_bad_samples_stop_the_run() -> None:
    report = BadSamples(0.02)
    report.add(50, bad(40))
    report.check()  # too few seen to judge
    report.add(1950, [])
    report.check()  # 40 of 2000 is the limit, not above it
    report.add(1, bad(1, "empty text: caption"))
    with pytest.raises(
        BadData, match=r"41 of 2001 samples .*2\.05%.*2\.00%.*40 × wrong JSON \(shard-00000:0: wrong JSON"
    ):
        report.check()
    few = BadSamples(0.001)
    few.add(100, bad(2))
    few.check()  # two may be chance
    few.add(0, bad(1))
    with pytest.raises(BadData):
        few.check()


def test_counts_of_other_processes_decide_the_same_everywhere() -> None:
    here, there = BadSamples(0.01), BadSamples(0.01)
    here.add(200, bad(2), total=5)
    there.add(200, bad(3, "missing image: 0"), total=5)
    for report, mine in ((here, 2), (there, 3)):
        assert (report.seen, report.bad) == (200, 5)
        assert report.kinds["on other processes"] == 5 - mine
        with pytest.raises(BadData, match="5 of 200"):
            report.check()


def test_report_names_some_counts_all_and_survives_a_resume(tmp_path: Path) -> None:
    report = BadSamples(0.5, named=3)
    report.add(300, [*bad(10), *bad(10), *bad(2, "odd"), ("shard-00001:9", ": nothing before the colon")])
    resumed = BadSamples(0.5, named=3)
    resumed.restore(json.loads(json.dumps(report.state())))
    assert resumed.state() == report.state()
    resumed.add(100, bad(1, "wrong JSON: line 2"))
    resumed.write(tmp_path / "bad.json")
    assert json.loads((tmp_path / "bad.json").read_text("utf-8")) == {
        "share": 0.06,
        "allowed_share": 0.5,
        "seen": 400,
        "bad": 24,
        "kinds": {"wrong JSON": 21, "odd": 2, "other": 1},
        "examples": {
            "wrong JSON": {f"shard-00000:{n}": "wrong JSON: line 1" for n in range(3)},
            "odd": {"shard-00000:0": "odd", "shard-00000:1": "odd"},
            "other": {"shard-00001:9": ": nothing before the colon"},
        },
    }
    assert [path.name for path in tmp_path.iterdir()] == ["bad.json"]
    with pytest.raises(BadConfig, match="count of bad samples"):
        resumed.restore({"seen": 3})


def test_kinds_are_bounded() -> None:
    report = BadSamples(1.0)
    report.add(500, [(f"k{n}", f"reason number {n}") for n in range(500)])
    assert len(report.kinds) == 51
    assert sum(report.kinds.values()) == report.bad == 500
    report.check()
