"""The contract of a Kubernetes API, continued: selectors, pages and watches."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes import client as kube
from kubernetes import watch as kube_watch
from kubernetes.client import ApiException

from tests.kube.samples import GROUP, gadget
from tests.kube.space import PLACE, Space

pytest_plugins = ("tests.kube.space_fixtures",)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("tier=front", "a"),
        ("tier==front", "a"),
        ("tier!=front", "bcd"),
        ("tier in (front, back)", "ab"),
        ("tier notin (front,back)", "cd"),
        ("tier", "abc"),
        ("!tier", "d"),
        ("tier,tier!=back", "ac"),
        ("tier in (back,side),color=red", "b"),
    ],
)
def test_labels_select(space: Space, selector: str, expected: str) -> None:
    for name, labels in (
        ("a", {"tier": "front"}),
        ("b", {"tier": "back", "color": "red"}),
        ("c", {"tier": "side"}),
        ("d", {"color": "red"}),
    ):
        body = gadget(name, "one")
        body["metadata"]["labels"] = labels
        space.create(body)
    found = space.request("GET", space.path(), labelSelector=selector)["items"]
    assert "".join(item["metadata"]["name"] for item in found) == expected


def test_fields_select(space: Space) -> None:
    for name in ("a", "b"):
        space.create(gadget(name, "one"))
    found = space.request("GET", space.path(), fieldSelector="metadata.name=b")["items"]
    assert [item["metadata"]["name"] for item in found] == ["b"]
    with pytest.raises(ApiException) as error:
        space.request("GET", space.path(), fieldSelector="spec.size=1")
    assert error.value.status == 400


def test_a_list_in_pages_shows_one_moment(space: Space) -> None:
    for number in range(5):
        space.create(gadget(f"g{number}", "one"))
    first = space.request("GET", space.path(), limit="2")
    space.delete("g4")
    assert first["metadata"]["remainingItemCount"] == 3
    names, token = [item["metadata"]["name"] for item in first["items"]], first["metadata"]["continue"]
    while token:
        page = space.request("GET", space.path(), limit="2", **{"continue": token})
        names += [item["metadata"]["name"] for item in page["items"]]
        token = page["metadata"].get("continue")
    assert names == ["g0", "g1", "g2", "g3", "g4"]
    assert (first["kind"], first["apiVersion"]) == ("GadgetList", f"{GROUP}/v1alpha1")


def seen(space: Space, version: str, count: int, **query: Any) -> list[tuple[str, str]]:
    """The next `count` events after a version: type and name."""
    stream = kube_watch.Watch()
    found: list[tuple[str, str]] = []
    listing = kube.CustomObjectsApi(space.api).list_namespaced_custom_object
    for event in stream.stream(
        listing, *PLACE, space.name, "gadgets", resource_version=version, timeout_seconds=20, **query
    ):
        found.append((event["type"], event["object"]["metadata"]["name"]))
        if len(found) == count:
            stream.stop()
    return found


def test_a_watch_tells_what_happened_since_a_version(space: Space) -> None:
    space.create(gadget("before", "one"))
    version = space.request("GET", space.path())["metadata"]["resourceVersion"]
    space.create(gadget("a", "one"))
    space.merge("a", {"spec": {"size": 2}})
    space.delete("a")
    assert seen(space, version, 3) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


def test_for_a_watch_with_a_selector_what_stops_to_match_is_deleted(space: Space) -> None:
    version = space.request("GET", space.path())["metadata"]["resourceVersion"]
    space.create(gadget("a", "one"))
    for value in ("on", "off", "on"):
        space.merge("a", {"metadata": {"labels": {"light": value}}})
    expected = [("ADDED", "a"), ("DELETED", "a"), ("ADDED", "a")]
    assert seen(space, version, 3, label_selector="light=on") == expected


def test_a_version_that_is_long_forgotten_is_gone(space: Space) -> None:
    with pytest.raises(ApiException) as error:
        seen(space, "1", 1)
    assert error.value.status == 410


def test_a_watch_ends_at_its_time(space: Space) -> None:
    stream = kube_watch.Watch()
    listing = kube.CustomObjectsApi(space.api).list_namespaced_custom_object
    version = space.request("GET", space.path())["metadata"]["resourceVersion"]
    events = stream.stream(listing, *PLACE, space.name, "gadgets", resource_version=version, timeout_seconds=1)
    assert list(events) == []
