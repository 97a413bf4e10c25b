"""A stage of type data: its pieces are tasks on the data queue, and the status counts those that are there.

A message may be lost or come twice, so a piece that is missing is asked for again whenever somebody looks; the task
finds out by itself that the piece is there or that another one is at it.
"""

from __future__ import annotations

from services.operator.actions import BuildShard
from services.operator.attempts import is_edited
from services.operator.draft import Draft
from services.operator.naming import output_folder
from services.operator.outcome import decide
from services.operator.resource import Stage
from services.operator.status import Artifact, StageStatus


def advance(draft: Draft, stage: Stage) -> None:
    state = draft.of(stage)
    if state.phase == "Running" and state.failure is not None:
        decide(draft, stage, state, state.failure)
        state = draft.of(stage)
    if state.phase == "Failed":
        return
    edited = is_edited(state, stage)
    missing = sorted(set(range(stage.shards)) - {shard.number for shard in state.shards or ()})
    if not missing and not edited:
        _finish(draft, stage)
    elif draft.world.job.spec.suspend:
        if state.attempt:
            draft.change(stage, phase="Suspended")
    elif state.phase == "Backoff" and state.next_attempt_time and state.next_attempt_time > draft.now:
        draft.look_again(state.next_attempt_time)
    elif not edited:
        if state.phase != "Running":
            state = _begin(draft, stage, state)
        draft.do(*(BuildShard(stage.name, state.attempt, number) for number in missing))


def _begin(draft: Draft, stage: Stage, state: StageStatus) -> StageStatus:
    number = state.attempt + 1
    begun = draft.change(
        stage,
        phase="Running",
        attempt=number,
        start_time=state.start_time or draft.now,
        spec_hash=stage.spec_hash,
        next_attempt_time=None,
    )
    pieces = "one piece" if stage.shards == 1 else f"{stage.shards} pieces"
    draft.tell("Started", f"stage {stage.name} builds {pieces} of data", stage=begun)
    return begun


def _finish(draft: Draft, stage: Stage) -> None:
    job = draft.world.job
    uri = f"pvc://{job.spec.output.pvc}/{output_folder(job.name, job.uid)}/{stage.name}"
    state = draft.change(stage, phase="Succeeded", completion_time=draft.now, artifact=Artifact(uri=uri))
    draft.tell("StageComplete", f"stage {stage.name} is complete", stage=state)
