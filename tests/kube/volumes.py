"""A pod's volumes as folders of this machine, and what is written into them before its containers start.

Processes share one file system, so a mount path inside the "container" stands for a folder here; `paths.Rewriter` puts
the one in place of the other wherever a command, an argument or a variable names it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.kube import pod_facts
from tests.kube.objects import Key, Object
from tests.kube.tokens import Tokens
from tests.kube.verbs import Api


class NotReady(Exception):
    """Something that the pod needs is not there yet; the text is what its status says of it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass
class Volumes:
    """The volumes of one pod. `refresh` are tokens that have to be written again: seconds until then, and how."""

    api: Api
    tokens: Tokens
    pod: Object
    own: Path
    claims: Path
    refresh: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def prepare(self) -> dict[str, Path]:
        """The folder of each volume by its name."""
        return {volume["name"]: self._folder(volume) for volume in self.pod["spec"].get("volumes") or []}

    @property
    def _namespace(self) -> str:
        return str(self.pod["metadata"]["namespace"])

    def _folder(self, volume: Object) -> Path:
        if claim := volume.get("persistentVolumeClaim"):
            return _made(self.claims / self._namespace / claim["claimName"])
        if path := volume.get("hostPath"):
            return Path(path["path"])
        folder = _made(self.own / "volumes" / volume["name"])
        if "configMap" in volume:
            self._write_config(folder, volume["configMap"], "configmaps", volume["configMap"].get("name", ""))
        elif "secret" in volume:
            self._write_config(folder, volume["secret"], "secrets", volume["secret"].get("secretName", ""))
        elif "downwardAPI" in volume:
            self._write_facts(folder, volume["downwardAPI"])
        for source in (volume.get("projected") or {}).get("sources") or []:
            self._write_projected(folder, source)
        return folder

    def _write_projected(self, folder: Path, source: Object) -> None:
        if token := source.get("serviceAccountToken"):
            self._write_token(folder / token["path"], token)
        if config := source.get("configMap"):
            self._write_config(folder, config, "configmaps", config.get("name", ""))
        if secret := source.get("secret"):
            self._write_config(folder, secret, "secrets", secret.get("name", ""))
        if facts := source.get("downwardAPI"):
            self._write_facts(folder, facts)

    def _write_config(self, folder: Path, source: Object, plural: str, name: str) -> None:
        data = content_of(self.api, plural, (self._namespace, name), bool(source.get("optional")))
        items = source.get("items") or [{"key": key, "path": key} for key in data]
        for item in items:
            if item["key"] in data:
                _written(folder / item["path"], data[item["key"]])

    def _write_facts(self, folder: Path, source: Object) -> None:
        for item in source.get("items") or []:
            if ref := item.get("fieldRef"):
                _written(folder / item["path"], pod_facts.fact(self.pod, ref["fieldPath"]).encode())

    def _write_token(self, path: Path, source: Object) -> None:
        key = self._namespace, self.pod["spec"]["serviceAccountName"]
        account = self.api.store.get(("", "serviceaccounts"), key)
        if account is None:
            raise NotReady("ContainerCreating", f'serviceaccount "{key[1]}" not found')
        audience, seconds = source.get("audience", ""), float(source.get("expirationSeconds") or 3600)

        def write() -> None:
            audiences = [audience] if audience else []
            _written(path, self.tokens.issue(account, audiences, seconds, self.pod).encode())

        write()
        self.refresh.append((seconds * 0.8, write))


def content_of(api: Api, plural: str, key: Key, optional: bool) -> dict[str, bytes]:
    """The data of a ConfigMap or a Secret as bytes."""
    found = api.store.get(("", plural), key)
    if found is None:
        if optional:
            return {}
        raise NotReady("CreateContainerConfigError", f'{plural.removesuffix("s")} "{key[1]}" not found')
    data = {name: text.encode() for name, text in (found.get("data") or {}).items()}
    binary = found.get("binaryData") or {}
    if plural == "secrets":
        data, binary = {}, found.get("data") or {}
    return data | {name: base64.b64decode(text) for name, text in binary.items()}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _written(path: Path, data: bytes) -> None:
    """Whole or not at all: a process may be reading it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"..{path.name}")
    fresh.write_bytes(data)
    fresh.rename(path)
