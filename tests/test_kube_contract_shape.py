"""The contract of a Kubernetes API, continued: schemas, defaults, rules, patches and server-side apply."""

from __future__ import annotations

import pytest
from kubernetes import client as kube
from kubernetes.client import ApiException

from tests.kube.objects import Object
from tests.kube.samples import GROUP, STEPS_FIXED, gadget, gadget_definition
from tests.kube.space import Space, refused
from tests.kube.waiting import gone

pytest_plugins = ("tests.kube.space_fixtures",)


def owner_of(obj: Object, manager: str) -> Object:
    found: Object = next(entry for entry in obj["metadata"]["managedFields"] if entry["manager"] == manager)
    return found


def test_apply_creates_and_owns(space: Space) -> None:
    made = space.apply(gadget("a", "one", size=2), "alice")
    entry = owner_of(made, "alice")
    assert (entry["operation"], entry["fieldsType"]) == ("Apply", "FieldsV1")
    assert entry["fieldsV1"]["f:spec"]["f:size"] == {}
    assert 'k:{"name":"one"}' in entry["fieldsV1"]["f:spec"]["f:steps"]
    assert (
        space.apply(gadget("a", "one", size=2), "alice")["metadata"]["resourceVersion"]
        == made["metadata"]["resourceVersion"]
    )


def test_apply_conflicts_with_another_owner_until_forced(space: Space) -> None:
    space.apply(gadget("a", "one", size=2), "alice")
    with pytest.raises(ApiException) as error:
        space.apply(gadget("a", "one", size=3), "bob")
    body = refused(error)
    assert body["reason"] == "Conflict"
    assert body["message"] == 'Apply failed with 1 conflict: conflict with "alice": .spec.size'
    assert body["details"]["causes"][0]["reason"] == "FieldManagerConflict"
    taken = space.apply(gadget("a", "one", size=3), "bob", force="true")
    assert taken["spec"]["size"] == 3
    assert "f:size" not in owner_of(taken, "alice")["fieldsV1"]["f:spec"]


def test_apply_joins_lists_by_their_key_and_takes_back_what_it_no_longer_wants(space: Space) -> None:
    space.apply(gadget("a", "one", "two", size=2), "alice")
    other = {"apiVersion": f"{GROUP}/v1alpha1", "kind": "Gadget", "metadata": {"name": "a"}}
    joined = space.apply({**other, "spec": {"steps": [{"name": "three", "weight": 5}]}}, "bob")
    assert [step["name"] for step in joined["spec"]["steps"]] == ["one", "two", "three"]
    less = space.apply(gadget("a", "one"), "alice")
    assert [step["name"] for step in less["spec"]["steps"]] == ["one", "three"]
    assert "size" not in less["spec"]


def test_apply_to_the_status_leaves_the_rest(space: Space) -> None:
    space.create(gadget("a", "one"))
    body = {**gadget("a", "one", size=7), "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    del body["spec"]
    after = space.apply(body, "progress", "status")
    assert after["status"]["conditions"] == [{"type": "Ready", "status": "True"}]
    assert owner_of(after, "progress")["subresource"] == "status"
    assert after["metadata"]["generation"] == 1
    other = {**body, "status": {"conditions": [{"type": "Done", "status": "False"}]}}
    both = space.apply(other, "operator", "status")
    assert {one["type"] for one in both["status"]["conditions"]} == {"Ready", "Done"}


def test_defaults_come_and_unknown_fields_go(space: Space) -> None:
    body = gadget("a", "one", odd=1, free={"any": {"thing": [1, None]}}, port="http", labels={"x": "y"})
    made = space.create(body)
    assert made["spec"] == {
        "steps": [{"name": "one", "kind": "train", "weight": 1}],
        "suspend": False,
        "free": {"any": {"thing": [1, None]}},
        "port": "http",
        "labels": {"x": "y"},
    }
    with pytest.raises(ApiException) as error:
        space.create(gadget("b", "one", odd=1), fieldValidation="Strict")
    assert refused(error)["reason"] == "BadRequest"
    assert 'strict decoding error: unknown field "spec.odd"' in refused(error)["message"]


@pytest.mark.parametrize(
    ("spec", "field", "message"),
    [
        ({"steps": [{}]}, "spec.steps[0].name", "Required value"),
        ({"size": 0}, "spec.size", "Invalid value: 0: spec.size in body should be greater than or equal to 1"),
        ({"size": "x"}, "spec.size", 'Invalid value: "string": spec.size in body must be of type integer: "string"'),
        (
            {"steps": [{"name": "a", "kind": "zip"}]},
            "spec.steps[0].kind",
            'Unsupported value: "zip": supported values: "train", "eval"',
        ),
        (
            {"steps": [{"name": "A"}]},
            "spec.steps[0].name",
            "Invalid value: \"A\": spec.steps[0].name in body should match '^[a-z]+$'",
        ),
        ({"steps": [{"name": "a"}, {"name": "a"}]}, "spec.steps[1]", 'Duplicate value: {"name":"a"}'),
    ],
)
def test_what_the_schema_forbids_is_refused_by_name(space: Space, spec: Object, field: str, message: str) -> None:
    body = gadget("a", "one")
    body["spec"] |= spec
    with pytest.raises(ApiException) as error:
        space.create(body)
    status = refused(error)
    assert (status["code"], status["reason"]) == (422, "Invalid")
    assert {"field": field, "message": message} in [
        {key: cause.get(key) for key in ("field", "message")} for cause in status["details"]["causes"]
    ]
    assert status["message"].startswith(f'Gadget.{GROUP} "a" is invalid: ')


def test_a_rule_about_changes_reads_the_old_status(space: Space) -> None:
    space.create(gadget("a", "one", "two"))
    free = [{"name": "one", "weight": 3}, {"name": "two"}]
    space.merge("a", {"spec": {"steps": free}})
    space.merge("a", {"status": {"begun": ["one"]}}, "status")
    with pytest.raises(ApiException) as error:
        space.merge("a", {"spec": {"steps": [{"name": "one", "weight": 4}, {"name": "two"}]}})
    assert refused(error)["code"] == 422
    assert STEPS_FIXED in refused(error)["message"]
    before = space.read("a")["metadata"]["generation"]
    changed = space.merge("a", {"spec": {"steps": [{"name": "one", "weight": 3}, {"name": "two", "weight": 9}]}})
    assert changed["metadata"]["generation"] == before + 1


def test_json_patch_tests_before_it_changes(space: Space) -> None:
    space.create(gadget("a", "one", size=1))
    media = "application/json-patch+json"
    operations = [{"op": "test", "path": "/spec/size", "value": 1}, {"op": "replace", "path": "/spec/size", "value": 2}]
    assert space.request("PATCH", space.path("a"), operations, media)["spec"]["size"] == 2
    with pytest.raises(ApiException) as error:
        space.request("PATCH", space.path("a"), operations, media)
    assert error.value.status == 422


def test_a_dry_run_leaves_nothing(space: Space) -> None:
    made = space.create(gadget("a", "one"), dryRun="All")
    assert made["spec"]["suspend"] is False
    assert gone(lambda: space.read("a"))


def test_definitions_that_make_no_sense_are_refused(space: Space) -> None:
    extensions = kube.ApiextensionsV1Api(space.api)
    body = gadget_definition()
    body["metadata"]["name"] = f"others.{GROUP}"
    with pytest.raises(ApiException) as error:
        extensions.create_custom_resource_definition(body)
    assert refused(error)["details"]["causes"][0]["field"] == "metadata.name"
    body = gadget_definition()
    body["spec"]["names"] |= {"plural": "others", "kind": "Other", "singular": "other", "shortNames": []}
    body["metadata"]["name"] = f"others.{GROUP}"
    schema = body["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["x-kubernetes-validations"] = [{"rule": "self.spec.size >"}]
    with pytest.raises(ApiException) as error:
        extensions.create_custom_resource_definition(body)
    assert "compilation failed" in refused(error)["message"]
