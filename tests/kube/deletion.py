"""How objects go: preconditions, grace, finalizers, and the moment when nothing holds them any more."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.kube.errors import conflict
from tests.kube.kinds import Kind
from tests.kube.objects import (
    BACKGROUND,
    FOREGROUND,
    FOREGROUND_FINALIZER,
    ORPHAN,
    ORPHAN_FINALIZER,
    Object,
    dig,
    finalizers,
    is_deleting,
    timestamp,
)
from tests.kube.options import DeleteOptions
from tests.kube.store import Store


def delete(store: Store, kind: Kind, obj: Object, how: DeleteOptions) -> tuple[Object, bool]:
    """The object after the request, and whether it is gone."""
    _check_preconditions(kind, obj, how)
    new = {**obj, "metadata": {**obj["metadata"]}}
    _choose_finalizers(new, how.propagation)
    grace = _grace(kind, obj, how.grace)
    if not _is_held(kind, new, grace):
        return (new, True) if how.dry_run else (store.remove(kind, new), True)
    _mark(kind, new, grace)
    if how.dry_run or new == obj:
        return new, False
    return settle(store, kind, new), False


def settle(store: Store, kind: Kind, new: Object) -> Object:
    """Writes an object, or removes it if it was only waiting for what has just been written."""
    if is_deleting(new) and not _is_held(kind, new, new["metadata"].get("deletionGracePeriodSeconds") or 0):
        return store.remove(kind, new)
    return store.put(kind, new)


def _check_preconditions(kind: Kind, obj: Object, how: DeleteOptions) -> None:
    uid, version = obj["metadata"]["uid"], obj["metadata"]["resourceVersion"]
    if how.uid is not None and how.uid != uid:
        why = f"the UID in the precondition ({how.uid}) does not match the UID in record ({uid})."
        raise conflict(kind, obj["metadata"]["name"], f"{why} The object might have been deleted and then recreated")
    if how.resource_version is not None and how.resource_version != version:
        why = f"the ResourceVersion in the precondition ({how.resource_version}) does not match"
        raise conflict(
            kind,
            obj["metadata"]["name"],
            f"{why} the ResourceVersion in record ({version}). The object might have been modified",
        )


def _choose_finalizers(new: Object, propagation: str) -> None:
    """The finalizer by which the garbage collector knows how the dependents are meant."""
    kept = list(finalizers(new))
    if propagation:
        kept = [each for each in kept if each not in (FOREGROUND_FINALIZER, ORPHAN_FINALIZER)]
    if propagation == FOREGROUND:
        kept.append(FOREGROUND_FINALIZER)
    elif propagation == ORPHAN:
        kept.append(ORPHAN_FINALIZER)
    assert propagation in ("", BACKGROUND, FOREGROUND, ORPHAN), propagation
    new["metadata"].pop("finalizers", None)
    if kept:
        new["metadata"]["finalizers"] = kept


def _grace(kind: Kind, obj: Object, asked: int | None) -> int:
    """Only pods that have a node and have not ended are given time."""
    if kind.id != ("", "pods"):
        return 0
    ended = dig(obj, "status", "phase") in ("Succeeded", "Failed")
    if not dig(obj, "spec", "nodeName") or ended:
        return 0
    grace = dig(obj, "spec", "terminationGracePeriodSeconds", default=30) if asked is None else asked
    already = dig(obj, "metadata", "deletionGracePeriodSeconds")
    return int(grace) if already is None else min(int(grace), int(already))


def _is_held(kind: Kind, new: Object, grace: int) -> bool:
    if finalizers(new) or grace > 0:
        return True
    return kind.id == ("", "namespaces") and bool(dig(new, "spec", "finalizers"))


def _mark(kind: Kind, new: Object, grace: int) -> None:
    meta = new["metadata"]
    first = "deletionTimestamp" not in meta
    if first or meta.get("deletionGracePeriodSeconds") != grace:
        meta["deletionTimestamp"] = timestamp(datetime.now(UTC) + timedelta(seconds=grace))
        meta["deletionGracePeriodSeconds"] = grace
    if first and "generation" in meta:
        meta["generation"] += 1
    if kind.id == ("", "namespaces"):
        new["status"] = {**new.get("status", {}), "phase": "Terminating"}
