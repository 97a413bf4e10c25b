"""A plan in the making: the status as it becomes, the actions, and when to look again.

Steps of a plan change a draft one after another; `Plan` is what is left at the end, a value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from services.operator.actions import Action, Emit
from services.operator.conditions import with_condition
from services.operator.resource import Stage
from services.operator.status import StageStatus, Status
from services.operator.world import World


@dataclass(frozen=True)
class Plan:
    """Write `status` first, under the version that was read; then do `actions`. Look again at `wake`, if set."""

    status: Status
    actions: tuple[Action, ...] = ()
    wake: datetime | None = None


@dataclass
class Draft:
    """Mutable, and alive only while one plan is made. `said` has the conditions that were set in it."""

    world: World
    now: datetime
    status: Status
    actions: list[Action] = field(default_factory=list)
    wake: datetime | None = None
    said: set[str] = field(default_factory=set)

    def do(self, *actions: Action) -> None:
        self.actions += actions

    def tell(self, reason: str, message: str, *, stage: StageStatus | None = None, warning: bool = False) -> None:
        name, attempt = (stage.name, stage.attempt) if stage else ("", 0)
        self.do(Emit(reason, message, warning, name, attempt))

    def look_again(self, at: datetime) -> None:
        self.wake = min(self.wake or at, at)

    def condition(self, kind: str, truth: bool | None, reason: str, message: str = "") -> None:
        """The last word of a plan counts; whether it is a change is seen from before the plan."""
        job = self.world.job
        self.said.add(kind)
        self.status = with_condition(
            self.status, kind, truth, reason, message, generation=job.generation, now=self.now, since=job.status
        )

    def had(self, kind: str, reason: str) -> bool:
        """Whether the condition had that reason before this plan."""
        found = self.world.job.status.condition(kind)
        return found is not None and found.reason == reason

    def put(self, stage: StageStatus) -> StageStatus:
        """Replaces the stage of that name."""
        self.status = self.status.to(
            stages=tuple(stage if one.name == stage.name else one for one in self.status.stages)
        )
        return stage

    def change(self, stage: Stage, **changes: Any) -> StageStatus:
        return self.put(self.of(stage).to(**changes))

    def of(self, stage: Stage) -> StageStatus:
        found = self.status.stage(stage.name)
        return found or StageStatus(name=stage.name, type=stage.type)

    def plan(self) -> Plan:
        return Plan(self.status, tuple(self.actions), self.wake)
