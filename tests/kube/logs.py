"""`pods/log`: the output of a container, from wherever it is asked for, and on while it runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web

from tests.kube.errors import ApiError, bad_request
from tests.kube.kubelet import Kubelet
from tests.kube.objects import dig
from tests.kube.routes import Target
from tests.kube.verbs import Api

_LOOK_SECONDS = 0.2


class Logs:
    def __init__(self, api: Api, kubelet: Kubelet) -> None:
        self._api, self._kubelet = api, kubelet

    async def answer(self, request: web.Request, found: Target) -> web.StreamResponse:
        pod = self._api.read(found.kind, found.key)
        containers = [each["name"] for each in pod["spec"]["containers"]]
        container = request.query.get("container") or containers[0]
        if container not in [*containers, *(each["name"] for each in pod["spec"].get("initContainers") or [])]:
            raise bad_request(f"container {container} is not valid for pod {found.name}")
        path = Path(self._kubelet.log(pod["metadata"]["uid"], container)[0])
        if not path.exists():
            reason = dig(
                pod, "status", "containerStatuses", 0, "state", "waiting", "reason", default="ContainerCreating"
            )
            raise ApiError(
                400, "BadRequest", f'container "{container}" in pod "{found.name}" is waiting to start: {reason}'
            )
        data = _cut(path.read_bytes(), request)
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        await response.write(data)
        if request.query.get("follow", "").lower() in ("1", "true"):
            await self._follow(response, path, pod["metadata"]["uid"], container)
        await response.write_eof()
        return response

    async def _follow(self, response: web.StreamResponse, path: Path, uid: str, container: str) -> None:
        with path.open("rb") as log:
            log.seek(0, 2)
            more = True
            while more:
                more = self._kubelet.log(uid, container)[1]  # before reading: what came last must not be missed
                if data := log.read():
                    await response.write(data)
                elif more:
                    await asyncio.sleep(_LOOK_SECONDS)


def _cut(data: bytes, request: web.Request) -> bytes:
    lines = data.splitlines(keepends=True)
    if tail := request.query.get("tailLines"):
        lines = lines[-int(tail) :] if int(tail) else []
    text = b"".join(lines)
    limit = request.query.get("limitBytes")
    return text[: int(limit)] if limit else text
