"""The chart's chat page: off unless asked for, and a visitor stays with the pod that has the visitor's pictures."""

from __future__ import annotations

import pytest

from services.gateway.settings import Settings
from tests.helm import Case, named, needs_helm, objects, text

pytestmark = needs_helm


@pytest.mark.parametrize(("page", "affinity"), [(False, None), (True, "ClientIP")])
def test_a_page_keeps_its_visitors(page: bool, affinity: str | None) -> None:
    found = objects(text(Case("", {"gateway.page": page})))
    [container] = named(found, "Deployment", "gateway")["spec"]["template"]["spec"]["containers"]
    told = {one["name"]: one.get("value") for one in container["env"]}
    assert told["ZIYA_GATEWAY_PAGE"] == str(page).lower()
    assert "gateway_page" in Settings.model_fields
    assert named(found, "Service", "gateway")["spec"].get("sessionAffinity") == affinity
