"""What everything here relies on of a Kubernetes API: versions, status, deletion, owners.

All of it is asked over HTTP alone, and holds for a real cluster as well (tests/kube/space.py).
"""

from __future__ import annotations

import uuid

import pytest
from kubernetes.client import ApiException

from tests.kube.samples import GROUP, config_map, gadget, owned_by
from tests.kube.space import Space, refused
from tests.kube.waiting import eventually, gone

pytest_plugins = ("tests.kube.space_fixtures",)


def test_a_stale_write_conflicts_and_a_fresh_one_does_not(space: Space) -> None:
    first = space.create(gadget("a", "one"))
    space.merge("a", {"spec": {"size": 2}})
    stale = {"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}, "status": {"phase": "Running"}}
    with pytest.raises(ApiException) as error:
        space.merge("a", stale, "status")
    assert refused(error)["reason"] == "Conflict"
    assert "the object has been modified" in refused(error)["message"]
    fresh = space.read("a")
    fresh["spec"]["size"] = 3
    changed = space.request("PUT", space.path("a"), fresh)
    assert int(changed["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])
    with pytest.raises(ApiException) as error:
        space.request("PUT", space.path("a"), first)
    assert error.value.status == 409


def test_generation_counts_changes_of_the_spec_alone(space: Space) -> None:
    assert space.create(gadget("a", "one"))["metadata"]["generation"] == 1
    assert space.merge("a", {"metadata": {"labels": {"x": "y"}}})["metadata"]["generation"] == 1
    assert space.merge("a", {"status": {"phase": "Running"}}, "status")["metadata"]["generation"] == 1
    assert space.merge("a", {"spec": {"size": 2}})["metadata"]["generation"] == 2
    same = space.merge("a", {"spec": {"size": 2}})
    assert same["metadata"] == space.read("a")["metadata"]


def test_a_write_that_changes_nothing_takes_no_version(space: Space) -> None:
    made = space.create(gadget("a", "one"))
    again = space.merge("a", {"spec": {"suspend": False}})
    assert again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


def test_status_and_spec_are_written_through_paths_of_their_own(space: Space) -> None:
    made = space.create({**gadget("a", "one"), "status": {"phase": "Forged"}})
    assert "status" not in made
    after = space.merge("a", {"spec": {"size": 9}, "status": {"phase": "Running"}}, "status")
    assert after["status"] == {"phase": "Running"}
    assert "size" not in after["spec"]
    after = space.merge("a", {"spec": {"size": 9}, "status": {"phase": "Forged"}})
    assert (after["status"], after["spec"]["size"]) == ({"phase": "Running"}, 9)


def test_a_name_made_again_has_another_uid(space: Space) -> None:
    first = space.create(gadget("a", "one"))["metadata"]["uid"]
    with pytest.raises(ApiException) as error:
        space.create(gadget("a", "one"))
    assert refused(error)["reason"] == "AlreadyExists"
    assert refused(error)["message"] == f'gadgets.{GROUP} "a" already exists'
    space.delete("a")
    eventually(lambda: gone(lambda: space.read("a")))
    assert space.create(gadget("a", "one"))["metadata"]["uid"] != first


def test_what_is_not_there_is_not_found(space: Space) -> None:
    with pytest.raises(ApiException) as error:
        space.read("absent")
    assert refused(error)["message"] == f'gadgets.{GROUP} "absent" not found'
    with pytest.raises(ApiException) as error:
        space.batch.read_namespaced_job("absent", space.name)
    assert refused(error)["message"] == 'jobs.batch "absent" not found'
    assert refused(error)["details"] == {"name": "absent", "group": "batch", "kind": "jobs"}


def test_generate_name_makes_names(space: Space) -> None:
    body = gadget("", "one")
    body["metadata"] = {"generateName": "some-"}
    names = {space.create(body)["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("some-") and len(name) == 10 for name in names)


def test_finalizers_keep_an_object_until_they_are_taken_off(space: Space) -> None:
    body = gadget("a", "one")
    body["metadata"]["finalizers"] = ["test.ziya.dev/keep"]
    space.create(body)
    space.delete("a")
    kept = space.read("a")
    assert kept["metadata"]["deletionTimestamp"]
    assert kept["metadata"]["generation"] == 2
    with pytest.raises(ApiException) as error:
        space.merge("a", {"metadata": {"finalizers": ["test.ziya.dev/keep", "test.ziya.dev/more"]}})
    assert error.value.status == 422
    assert space.merge("a", {"status": {"phase": "Ending"}}, "status")["status"]["phase"] == "Ending"
    space.merge("a", {"metadata": {"finalizers": []}})
    assert gone(lambda: space.read("a"))


def test_delete_asks_for_the_uid_that_is_meant(space: Space) -> None:
    made = space.create(gadget("a", "one"))
    with pytest.raises(ApiException) as error:
        space.delete("a", preconditions={"uid": "of-somebody-else"})
    assert refused(error)["reason"] == "Conflict"
    with pytest.raises(ApiException) as error:
        space.delete("a", preconditions={"resourceVersion": "1"})
    assert error.value.status == 409
    space.delete("a", preconditions={"uid": made["metadata"]["uid"]})
    assert gone(lambda: space.read("a"))


def test_dependents_go_after_their_owner(space: Space) -> None:
    """A real garbage collector may learn of a new kind only after half a minute."""
    owner = space.create(gadget("owner", "one"))
    child = config_map("child")
    child["metadata"]["ownerReferences"] = owned_by(owner)
    space.core.create_namespaced_config_map(space.name, child)
    space.delete("owner", propagationPolicy="Background")
    assert gone(lambda: space.read("owner"))
    eventually(lambda: gone(lambda: space.core.read_namespaced_config_map("child", space.name)), seconds=90)


def test_an_orphan_whose_owner_never_was_goes_too(space: Space) -> None:
    ghost = gadget("ghost", "one")
    ghost["metadata"]["uid"] = str(uuid.uuid4())
    child = config_map("child")
    child["metadata"]["ownerReferences"] = owned_by(ghost)
    space.core.create_namespaced_config_map(space.name, child)
    eventually(lambda: gone(lambda: space.core.read_namespaced_config_map("child", space.name)), seconds=90)


def test_a_foreground_deletion_waits_for_the_dependents(space: Space) -> None:
    owner = space.core.create_namespaced_config_map(space.name, config_map("owner"))
    child = config_map("child")
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner", "uid": owner.metadata.uid}}
    child["metadata"] |= {"ownerReferences": owned_by(reference), "finalizers": ["test.ziya.dev/keep"]}
    space.core.create_namespaced_config_map(space.name, child)
    space.core.delete_namespaced_config_map("owner", space.name, propagation_policy="Foreground")

    def child_is_going() -> bool:
        return space.core.read_namespaced_config_map("child", space.name).metadata.deletion_timestamp is not None

    eventually(child_is_going, seconds=90)
    waiting = space.core.read_namespaced_config_map("owner", space.name)
    assert waiting.metadata.finalizers == ["foregroundDeletion"]
    assert waiting.metadata.deletion_timestamp is not None
    space.core.patch_namespaced_config_map("child", space.name, {"metadata": {"finalizers": None}})
    eventually(lambda: gone(lambda: space.core.read_namespaced_config_map("owner", space.name)), seconds=90)
    assert gone(lambda: space.core.read_namespaced_config_map("child", space.name))


def test_an_orphaning_deletion_leaves_the_dependents(space: Space) -> None:
    owner = space.core.create_namespaced_config_map(space.name, config_map("owner"))
    child = config_map("child")
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner", "uid": owner.metadata.uid}}
    child["metadata"]["ownerReferences"] = owned_by(reference)
    space.core.create_namespaced_config_map(space.name, child)
    space.core.delete_namespaced_config_map("owner", space.name, propagation_policy="Orphan")
    eventually(lambda: gone(lambda: space.core.read_namespaced_config_map("owner", space.name)), seconds=90)
    assert space.core.read_namespaced_config_map("child", space.name).metadata.owner_references is None


def test_nothing_is_made_in_a_namespace_that_is_going(space: Space) -> None:
    keep = config_map("keep")
    keep["metadata"]["finalizers"] = ["test.ziya.dev/keep"]
    space.core.create_namespaced_config_map(space.name, keep)
    space.core.delete_namespace(space.name)
    eventually(lambda: space.core.read_namespace(space.name).status.phase == "Terminating")
    with pytest.raises(ApiException) as error:
        space.create(gadget("late", "one"))
    assert refused(error)["reason"] == "Forbidden"
    assert refused(error)["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    space.core.patch_namespaced_config_map("keep", space.name, {"metadata": {"finalizers": None}})
    eventually(lambda: gone(lambda: space.core.read_namespace(space.name)), seconds=90)
    space.core.create_namespace({"metadata": {"name": space.name}})
