"""Puts this machine's folders and address in place of a container's, in commands, arguments and variables."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.kube.pod_facts import ADDRESS

_PYTHON = ("python", "python3", "/usr/bin/python3", "/usr/local/bin/python", "/usr/local/bin/python3")


class Rewriter:
    """`mounts`: host path by mount path. `services`: names of headless Services, whose pods all live here."""

    def __init__(self, mounts: dict[str, Path], services: set[str], namespace: str) -> None:
        self._mounts = mounts
        longest_first = sorted(mounts, key=len, reverse=True)
        paths = "|".join(re.escape(path.rstrip("/")) for path in longest_first)
        self._path = re.compile(rf"(?:(?<![\w./-])|(?<=://))(?:{paths})(?![\w.-])") if mounts else None
        names = "|".join(re.escape(name) for name in sorted(services, key=len, reverse=True))
        place = rf"\.{re.escape(namespace)}(?:\.svc(?:\.cluster\.local)?)?"
        self._name = (
            re.compile(rf"(?<![\w.-])[a-z0-9][a-z0-9-]*\.(?:{names})(?:{place})?(?![\w-])") if services else None
        )

    def text(self, text: str) -> str:
        if self._path is not None:
            text = self._path.sub(lambda found: str(self._mounts[_mount(self._mounts, found[0])]), text)
        return self._name.sub(ADDRESS, text) if self._name is not None else text

    def command(self, words: list[str]) -> list[str]:
        rewritten = [self.text(word) for word in words]
        return [sys.executable, *rewritten[1:]] if rewritten[0] in _PYTHON else rewritten


def _mount(mounts: dict[str, Path], found: str) -> str:
    return found if found in mounts else f"{found}/"


def expand(text: str, variables: dict[str, str]) -> str:
    """`$(NAME)` where NAME is known; `$$` is a dollar."""

    def value(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)", value, text)
