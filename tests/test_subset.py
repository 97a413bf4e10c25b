"""What the comparison of rendered with stored objects lets pass, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.subset import differences

SAME: list[tuple[Any, Any]] = [
    ({"a": 1}, {"a": 1, "b": 2}),
    ({"ingress": [], "x": None, "y": {}}, {}),
    ({"limits": {"cpu": "1000m", "memory": "1Gi"}}, {"limits": {"cpu": "1", "memory": "1024Mi"}}),
    ([{"name": "a", "value": "1"}, {"name": "b"}], [{"name": "b"}, {"name": "a", "value": "1"}]),
]
OTHER: list[tuple[Any, Any, str]] = [
    ({"a": 1}, {"a": 2}, ".a: 2 is not 1"),
    ({"a": False}, {}, ".a: None is not False"),
    ({"a": {"b": 1}}, {"a": None}, ".a: None is no map"),
    ({"port": "1000m"}, {"port": "1"}, ".port: '1' is not '1000m'"),
    ({"limits": {"cpu": "2"}}, {"limits": {"cpu": "1"}}, ".limits.cpu: '1' is not '2'"),
    ([1, 2], [2, 1], "[0]: 2 is not 1"),
    ([{"name": "a"}], [{"name": "a"}, {"name": "b"}], ": [{'name': 'a'}, {'name': 'b'}] is not [{'name': 'a'}]"),
    ([{"name": "a", "value": "1"}], [{"name": "a"}], "[a].value: None is not '1'"),
]


@pytest.mark.parametrize(("wanted", "found"), SAME)
def test_what_servers_add_or_write_in_their_own_way_is_no_difference(wanted: Any, found: Any) -> None:
    assert list(differences(wanted, found)) == []


@pytest.mark.parametrize(("wanted", "found", "told"), OTHER)
def test_anything_else_is_one_with_its_place(wanted: Any, found: Any, told: str) -> None:
    assert told in list(differences(wanted, found))
