"""What is asked and when: distributions hold what their names say, and the seed decides."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from cli.load.arrivals import Pattern, send_times
from cli.load.lengths import Lengths
from cli.load.pictures import Album, from_folder, generated
from cli.load.request import Request
from cli.load.workload import Mix, Workload
from cli.text import CommandError
from tests.gateways import picture
from ziya.images import ImageLimits, inspect


@pytest.mark.parametrize(
    ("pattern", "burstiness", "variation"),
    [("constant", 1.0, 0.0), ("poisson", 1.0, 1.0), ("poisson", 0.25, 1.0), ("gamma", 0.25, 2.0), ("gamma", 4.0, 0.5)],
)
def test_arrivals_have_their_rate_and_their_burstiness(pattern: Pattern, burstiness: float, variation: float) -> None:
    times = list(islice(send_times(20.0, pattern, burstiness, seed=3), 20_000))
    gaps = np.array([later - earlier for earlier, later in pairwise([0.0, *times])])
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.05, abs=1e-6)


def test_arrivals_are_the_seeds() -> None:
    one, again, other = (list(islice(send_times(5, "poisson", 1, seed), 9)) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize(
    ("text", "low", "high", "mean"),
    [("64", 64, 64, 64), ("uniform:16:128", 16, 128, 72), ("normal:64:8", 30, 98, 64), ("exponential:64", 1, 999, 64)],
)
def test_lengths(text: str, low: int, high: int, mean: float) -> None:
    draw, lengths = np.random.default_rng(0), Lengths.parse(text, "--prompt-tokens")
    drawn = [lengths.draw(draw) for _ in range(5000)]
    assert low <= min(drawn) <= max(drawn) <= high
    assert np.mean(drawn) == pytest.approx(mean, rel=0.04)
    assert all(isinstance(length, int) for length in drawn)


@pytest.mark.parametrize(
    "text", ["0", "-3", "many", "uniform:9", "uniform:9:8", "normal:8:-1", "zipf:3", "nan", "fixed:inf"]
)
def test_a_length_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(CommandError, match=f"--prompt-tokens is a length .* not '{text}'"):
        Lengths.parse(text, "--prompt-tokens")


def requests(count: int = 400, seed: int = 1, nonce: int = 1, reuse: float = 0.5) -> list[Request]:
    mix = Mix(Lengths.parse("uniform:4:40", "p"), Lengths.parse("exponential:30", "a"), image_share=0.6)
    album = Album(generated(16, seed, nonce), reuse)
    return list(islice(Workload(mix, album, seed, nonce), count))


def test_shares_of_pictures_and_of_those_shown_before() -> None:
    made = requests()
    shown = [request for request in made if request.shown]
    assert len(shown) / len(made) == pytest.approx(0.6, abs=0.07)
    assert sum(request.reused for request in shown) / len(shown) == pytest.approx(0.5, abs=0.08)
    seen: set[bytes] = set()
    for request in shown:
        (one,) = request.turns[-1].images
        assert (one.data in seen) == bool(request.reused)
        seen.add(one.data)


@pytest.mark.parametrize(("reuse", "different"), [(0.0, 50), (1.0, 1)])
def test_none_or_all_shown_before(reuse: float, different: int) -> None:
    mix = Mix(Lengths.parse("4", "p"), Lengths.parse("4", "a"), image_share=1.0)
    album = Album(generated(16, 0, 0), reuse)
    album.prepare(10)
    made = list(islice(Workload(mix, album, 0, 0), 50))
    assert len({request.turns[-1].images[0].data for request in made}) == different


def test_pictures_prepared_are_the_first_that_are_shown() -> None:
    prepared, unprepared = Album(generated(16, 0, 0), 0.0), Album(generated(16, 0, 0), 0.0)
    prepared.prepare(3)
    shown = [[album.show(0.5, 0.5) for _ in range(5)] for album in (prepared, unprepared)]
    assert shown[0] == shown[1]


def test_the_same_seed_and_nonce_ask_the_same() -> None:
    assert requests() == requests()


def test_another_nonce_asks_for_the_same_work_and_finds_nothing_cached() -> None:
    first, second = requests(nonce=1), requests(nonce=2)
    assert [_shape(request) for request in first] == [_shape(request) for request in second]
    texts, others = (
        {request.turns[-1].text for request in made if len(request.turns[-1].text) > 60} for made in (first, second)
    )
    assert not texts & others
    pixels, rest = ({one.data for request in made for one in request.turns[-1].images} for made in (first, second))
    assert not pixels & rest


def _shape(request: Request) -> tuple[int, int, int, int]:
    return len(request.turns[-1].text.split()), request.max_tokens, request.shown, request.reused


def test_words_are_as_many_as_give_the_tokens() -> None:
    mix = Mix(Lengths.parse("30", "p"), Lengths.parse("4", "a"))
    (request,) = islice(Workload(mix, None, 0, 0, tokens_per_word=2.5), 1)
    assert len(request.turns[-1].text.split()) == 12


def test_generated_pictures_are_pictures_of_that_size() -> None:
    one, other = islice(generated(48, 0, 0), 2)
    assert inspect(one.data, ImageLimits()) == ("JPEG", 48, 48)
    assert one.kind == "jpeg"
    assert one.data != other.data


def test_a_folder_shows_its_pictures_once_and_then_again(tmp_path: Path) -> None:
    red, blue = picture("red"), picture("blue", form="JPEG")
    (tmp_path / "b.png").write_bytes(red)
    (tmp_path / "a.jpg").write_bytes(blue)
    (tmp_path / "notes.txt").write_text("no picture")
    album = Album(from_folder(tmp_path), reuse=0.0)
    shown = [album.show(0.5, 0.1) for _ in range(3)]
    assert [(one.data, one.kind, before) for one, before in shown] == [
        (blue, "jpeg", False),
        (red, "png", False),
        (blue, "jpeg", True),
    ]


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="there is no picture in"):
        from_folder(tmp_path)
    with pytest.raises(CommandError, match=r"cannot read .*nowhere"):
        from_folder(tmp_path / "nowhere")
    (tmp_path / "a.png").write_text("not a picture")
    with pytest.raises(CommandError, match=r"a\.png: "):
        next(from_folder(tmp_path))
