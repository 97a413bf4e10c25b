"""The short form of the fault suite: each kind of fault once, under a small load. `make chaos` is the long one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.act import Load, act
from tests.chaos.faults import FAULTS
from tests.chaos.leaving import Trials
from tests.chaos.left_behind import left_behind
from tests.chaos.scene import Scene, scene

pytestmark = [pytest.mark.xdist_group("chaos"), pytest.mark.timeout(300)]

LOAD = Load(requests=40, rate=12.0, calm=1.0, every=25.0, breaks=1)
HOLD = 0.25
# Nobody but the only one of its kind could have answered meanwhile.
MAY_REFUSE = {"triton-drained", "gateway-drained"}


@pytest.fixture(scope="module")
def there() -> Iterator[Scene]:
    with scene() as made:
        made.hold = HOLD
        yield made


@pytest.mark.parametrize(
    "name",
    [
        "vision+qformer-killed",
        "engine-killed",
        "redis-killed",
        "redis-emptied",
        "redis-slow",
        "redis-hangs",
        "redis-full",
        "qformer-frozen",
        "bus-spoilt",
        "clients-leave",
        "vision-drained",
        "gateway-drained",
    ],
)
async def test_nobody_is_failed(there: Scene, name: str) -> None:
    """Everybody is answered, or told in words; and nothing of anybody is left behind."""
    verdict = await act(there, FAULTS[name], LOAD, seed=len(name))
    assert verdict.failed == 0, verdict.examples
    assert sum(verdict.counts.values()) == LOAD.requests
    assert verdict.counts["answered"] > 0
    if name not in MAY_REFUSE:
        assert verdict.counts["refused"] == 0
    assert not any(left_behind(there).values())


async def test_who_leaves_sets_every_stage_free(there: Scene) -> None:
    trials = Trials(there)
    await trials.run(2)
    assert {name: len(times) for name, times in trials.times.items()} == dict.fromkeys(
        ("engine", "gateway", "encoder", "crowd", "bus", "waiting"), 2
    )
