"""A stage of type promote: the model takes over an InferenceService's traffic, in steps, and goes back when it must.

The percentage that there has to be is in the status before the InferenceService is told. A step is over when the new
revision has been ready for `stepSeconds` and the gate's query, if there is one, answers with enough. Below the gate, or
not ready in time, all traffic returns to the revision before (canaryTrafficPercent 0, as KServe's documents say), and
the job has failed.
"""

from __future__ import annotations

from datetime import timedelta

from services.operator.actions import SetTraffic
from services.operator.draft import Draft
from services.operator.outcome import fail
from services.operator.resource import TRAINS, Promotion, Stage
from services.operator.status import Canary, StageStatus

LOOK_AGAIN = timedelta(seconds=15)


def advance(draft: Draft, stage: Stage) -> None:
    promotion, state = draft.world.job.spec.promotion, draft.of(stage)
    if promotion is None:
        fail(draft, state.to(attempt=1), "NoPromotion", "spec.promotion does not say which InferenceService")
    elif state.canary is None:
        _begin(draft, stage, promotion)
    elif state.phase == "Stopping":
        _roll_back(draft, state, state.canary)
    elif draft.world.job.spec.suspend:
        draft.change(stage, phase="Suspended")
    else:
        if state.phase == "Suspended":
            _wait_anew(draft, stage, state.canary)
        _watch(draft, stage, promotion)


def _begin(draft: Draft, stage: Stage, promotion: Promotion) -> None:
    if draft.world.job.spec.suspend:
        return
    model = _model(draft, stage)
    if model is None:
        fail(draft, draft.of(stage).to(attempt=1), "NothingToPromote", "no stage before it leaves a model")
        return
    serving = draft.world.serving
    percent = promotion.steps[0] if serving is not None and serving.uri else 100
    previous = serving.uri if serving is not None else None
    canary = Canary(percent=percent, uri=model, previous_uri=previous)
    draft.change(stage, phase="Running", attempt=1, start_time=draft.now, canary=canary, spec_hash=stage.spec_hash)
    draft.do(SetTraffic(model, percent))
    draft.tell("Promoting", f"{promotion.inference_service} gives {percent} % of its traffic to {model}")


def _watch(draft: Draft, stage: Stage, promotion: Promotion) -> None:
    serving, state = draft.world.serving, draft.of(stage)
    canary = state.canary
    assert canary is not None
    draft.look_again(draft.now + LOOK_AGAIN)
    if serving is None or (serving.uri, serving.percent) != (canary.uri, canary.percent):
        draft.do(SetTraffic(canary.uri, canary.percent))
    elif not serving.ready and canary.since is not None:
        _wait_anew(draft, stage, canary)
    elif not serving.ready:
        if draft.now - (state.start_time or draft.now) > timedelta(seconds=promotion.ready_seconds):
            refuse(draft, state, "NotReady", f"not ready after {promotion.ready_seconds:.0f} s: {serving.message}")
    elif promotion.gate is not None and draft.world.measured is not None and _below(draft, promotion):
        gate = promotion.gate
        said = f"{gate.query} is {draft.world.measured:g} at {canary.percent} %, it must be at least {gate.at_least:g}"
        refuse(draft, state, "GateFailed", said)
    elif canary.since is None:
        draft.change(stage, canary=canary.model_copy(update={"since": draft.now}))
    elif draft.now - canary.since >= timedelta(seconds=promotion.step_seconds):
        _rise(draft, stage, canary, promotion)


def _wait_anew(draft: Draft, stage: Stage, canary: Canary) -> None:
    """A step's time counts while the revision is ready, and while somebody looks."""
    canary = canary.model_copy(update={"since": None})
    draft.change(stage, phase="Running", canary=canary, start_time=draft.now)


def _below(draft: Draft, promotion: Promotion) -> bool:
    assert promotion.gate is not None
    assert draft.world.measured is not None
    return not draft.world.measured >= promotion.gate.at_least


def _rise(draft: Draft, stage: Stage, canary: Canary, promotion: Promotion) -> None:
    if promotion.gate is not None and draft.world.measured is None:
        draft.condition("Progressing", None, "GateUnknown", f"{promotion.gate.prometheus} does not answer the query")
        return
    higher = [percent for percent in promotion.steps if percent > canary.percent]
    if not higher:
        state = draft.change(stage, phase="Succeeded", completion_time=draft.now)
        draft.condition("Promoted", True, "Promoted", f"{promotion.inference_service} serves {canary.uri}")
        draft.tell("Promoted", f"{promotion.inference_service} serves {canary.uri}", stage=state)
        return
    draft.change(stage, canary=canary.model_copy(update={"percent": higher[0], "since": None}), start_time=draft.now)
    draft.do(SetTraffic(canary.uri, higher[0]))
    draft.tell("Promoting", f"{promotion.inference_service} gives {higher[0]} % of its traffic to {canary.uri}")


def refuse(draft: Draft, state: StageStatus, reason: str, message: str) -> None:
    """Traffic goes back; a new InferenceService has nothing to go back to and stays."""
    canary = state.canary
    assert canary is not None
    draft.condition("Promoted", False, reason, message)
    if canary.previous_uri is None:
        fail(draft, state, reason, message)
        return
    draft.tell(reason, message, stage=state, warning=True)
    draft.put(state.to(phase="Stopping", canary=canary.model_copy(update={"percent": 0, "since": None})))
    draft.do(SetTraffic(canary.uri, 0))


def _roll_back(draft: Draft, state: StageStatus, canary: Canary) -> None:
    """The stage has failed when the InferenceService is told so."""
    serving, refused = draft.world.serving, draft.status.condition("Promoted")
    if serving is not None and serving.percent != 0:
        draft.do(SetTraffic(canary.uri, 0))
        draft.look_again(draft.now + LOOK_AGAIN)
        return
    reason, message = (refused.reason, refused.message) if refused else ("GateFailed", "")
    fail(draft, state, reason, message)


def _model(draft: Draft, stage: Stage) -> str | None:
    """Of the last stage that trains among those it needs, else among all before it."""
    spec = draft.world.job.spec
    before = spec.stages[: [one.name for one in spec.stages].index(stage.name)]
    trained = [one for one in before if one.type in TRAINS]
    needed = [one for one in trained if one.name in stage.needs] or trained
    found: StageStatus | None = draft.status.stage(needed[-1].name) if needed else None
    return found.artifact.uri if found and found.artifact else None
