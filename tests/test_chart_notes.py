"""What Helm tells after an install: every command in it works on what was installed, for all cases.

`helm template` prints no notes. So a copy of the chart renders them as a template like any other.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from typer import Context
from typer.main import get_command

from cli.main import app
from tests.helm import (
    CASES,
    CHART,
    EVERYTHING,
    NAMESPACE,
    RELEASE,
    Case,
    Object,
    given,
    helm,
    needs_helm,
    of_kind,
    rendered,
)

pytestmark = needs_helm


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copied: Path = copytree(CHART, tmp_path_factory.mktemp("notes") / "chart")
    notes = copied / "templates" / "NOTES.txt"
    (copied / "templates" / "_notes.tpl").write_text(
        f'{{{{- define "notes" }}}}{notes.read_text("utf-8")}{{{{ end }}}}', "utf-8"
    )
    notes.unlink()
    (copied / "templates" / "notes.yaml").write_text('notes: {{ include "notes" . | toJson }}\n', "utf-8")
    return copied


def notes(chart: Path, case: Case) -> str:
    words = ["template", RELEASE, str(chart), "--namespace", NAMESPACE, "--show-only", "templates/notes.yaml"]
    words += [word for api in EVERYTHING for word in ("--api-versions", api)]
    return str(yaml.safe_load(helm("helm4", *words, *given(case)))["notes"])


def commands(told: str) -> Iterator[list[str]]:
    """Lines that stand apart, as words."""
    for line in told.splitlines():
        if line.startswith("  "):
            yield shlex.split(line, comments=True)


@pytest.mark.parametrize("case", CASES)
def test_every_command_names_what_was_installed(chart: Path, case: str) -> None:
    told, found = notes(chart, CASES[case]), rendered(case)
    seen = set()
    for words in commands(told):
        seen.add(words[0])
        {"kubectl": check_kubectl, "helm": check_helm, "ziya": check_ziya}[words[0]](words, found)
    assert {"kubectl", "helm"} <= seen
    assert ("ziya" in seen) != bool(of_kind(found, "Ingress"))


def check_kubectl(words: list[str], found: list[Object]) -> None:
    assert words[1:3] == ["-n", NAMESPACE]
    if words[3] == "rollout":
        kind, name = words[5].split("/")
        assert (words[4], kind) == ("status", "deployment")
        assert name in {one["metadata"]["name"] for one in of_kind(found, "Deployment")}
        assert re.fullmatch(r"--timeout=[1-9]\d*s", words[6])
        return
    assert words[3] == "port-forward"
    kind, name = words[4].split("/")
    assert kind == "service"
    assert int(words[5]) in ports(found, name)


def check_helm(words: list[str], found: list[Object]) -> None:
    assert words[1:] == ["-n", NAMESPACE, "test", RELEASE, "--logs"]
    assert any(
        "test" in one["metadata"].get("annotations", {}).get("helm.sh/hook", "") for one in of_kind(found, "Pod")
    )


def check_ziya(words: list[str], found: list[Object]) -> None:
    """As the command line takes it, at the port that is forwarded."""
    known = get_command(app)
    name, command, rest = known.resolve_command(Context(known), words[1:])
    asked = command.make_context(name, rest)
    assert urlsplit(asked.params["url"]).port in ports(found, f"{RELEASE}-gateway")


@pytest.mark.parametrize("case", CASES)
def test_every_address_is_served(chart: Path, case: str) -> None:
    told, found = notes(chart, CASES[case]), rendered(case)
    inside = re.findall(rf"(?://|///)([\w-]+)\.{NAMESPACE}:(\d+)", told)
    assert len(inside) == 2
    for name, port in inside:
        assert int(port) in ports(found, name)
    for ingress in of_kind(found, "Ingress"):
        [rule] = ingress["spec"]["rules"]
        scheme = "https" if ingress["spec"].get("tls") else "http"
        assert f"OpenAI's API: {scheme}://{rule['host']}/v1" in told


OPEN = {"networkPolicy.enabled": False}
LOGINS = {"redis.auth.enabled": True, "redis.auth.secretName": "passwords"}
ELSEWHERE = {"redis.enabled": False, "redis.url": "redis://there:6379/0"}


@pytest.mark.parametrize(
    ("values", "warned"), [({}, False), (OPEN, True), ({**OPEN, **LOGINS}, False), ({**OPEN, **ELSEWHERE}, False)]
)
def test_it_warns_of_a_redis_that_anybody_reaches(chart: Path, values: dict[str, Any], warned: bool) -> None:
    assert ("reaches Redis, which has no password" in notes(chart, Case("", values))) == warned


@pytest.mark.parametrize("case", CASES)
def test_it_warns_where_no_key_is_asked_for(chart: Path, case: str) -> None:
    keys = CASES[case].values.get("gateway.apiKeys.enabled", False)
    assert ("Everybody who reaches it may ask" in notes(chart, CASES[case])) != keys


def ports(found: list[Object], service: str) -> set[int]:
    [one] = [one for one in of_kind(found, "Service") if one["metadata"]["name"] == service]
    return {port["port"] for port in one["spec"]["ports"]}


def test_helm_tells_just_this(chart: Path) -> None:
    told = helm("helm4", "install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--dry-run=client")
    assert told.split("NOTES:\n")[1].strip() == notes(chart, CASES["default"]).strip()
