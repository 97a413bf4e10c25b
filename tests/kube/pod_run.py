"""One pod on a node: volumes, init containers, containers, and its end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.kube import environment, processes
from tests.kube.errors import ApiError
from tests.kube.objects import Key, Object, key_of, timestamp
from tests.kube.options import DeleteOptions
from tests.kube.paths import Rewriter, expand
from tests.kube.pod_status import ContainerState, write_status
from tests.kube.processes import Process
from tests.kube.tokens import Tokens
from tests.kube.verbs import Api
from tests.kube.volumes import NotReady, Volumes

_MANAGER = "kubelet"
_RETRY_SECONDS = 0.5


@dataclass(frozen=True)
class Host:
    """What all pods share. `images`: the entry point of each image; `variables`: what the images have set."""

    api: Api
    tokens: Tokens
    root: Path
    images: Mapping[str, list[str]] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)


class PodRun:
    """`is_silent` stops all reports, as of a node that is gone."""

    def __init__(self, host: Host, pod: Object) -> None:
        self._host, self._pod, self._kind = host, pod, host.api.kinds["pods"]
        self.key: Key = key_of(pod)
        self.uid: str = pod["metadata"]["uid"]
        self.folder: Path = host.root / "pods" / self.uid
        self.is_silent = False
        self._stopping = False
        self._running: dict[str, Process] = {}
        self._first = [self._state(each) for each in pod["spec"].get("initContainers") or []]
        self._main = [self._state(each) for each in pod["spec"]["containers"]]
        self._timers: list[asyncio.TimerHandle] = []
        self._over = asyncio.Event()

    def _state(self, container: Object) -> ContainerState:
        name = container["name"]
        return ContainerState(container, self.folder / f"{name}.termination", self.log_of(name))

    def log_of(self, container: str) -> Path:
        return self.folder / f"{container}.log"

    async def run(self) -> None:
        """Until all containers have ended and the API knows it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            if await self._start():
                await asyncio.gather(*(self._follow(state) for state in self._main if state.code is None))
            self._report(over=True)
            if self._stopping:
                self._remove()
        finally:
            self._over.set()
            for timer in self._timers:
                timer.cancel()

    async def _start(self) -> bool:
        """Whether its containers run now."""
        volumes = await self._volumes()
        for state in self._first:
            if volumes is None or self._stopping:
                return False
            if not await self._started(state, volumes):
                return False
            await self._follow(state)
            if state.code:
                return False
        if volumes is None or self._stopping:
            return False
        for state in self._main:
            if not await self._started(state, volumes):
                return False
        self._report()
        return True

    async def _volumes(self) -> dict[str, Path] | None:
        while not self._stopping:
            volumes = Volumes(self._host.api, self._host.tokens, self._pod, self.folder, self._host.root / "claims")
            try:
                folders = volumes.prepare()
            except NotReady as lack:
                await self._wait_for(lack)
                continue
            loop = asyncio.get_running_loop()
            self._timers += [loop.call_later(seconds, write) for seconds, write in volumes.refresh]
            return folders
        return None

    async def _wait_for(self, lack: NotReady) -> None:
        for state in [*self._first, *self._main]:
            if not state.started_at:
                state.waiting = lack.reason, lack.message
        self._report()
        await asyncio.sleep(_RETRY_SECONDS)

    async def _started(self, state: ContainerState, volumes: dict[str, Path]) -> bool:
        while not self._stopping:
            try:
                command, variables, folder = self._command(state, volumes)
            except NotReady as lack:
                await self._wait_for(lack)
                continue
            state.message_file.write_bytes(b"")
            name = state.container["name"]
            self._running[name] = await Process.start(command, variables, folder, state.log)
            state.started_at = timestamp()
            return True
        return False

    def _command(self, state: ContainerState, volumes: dict[str, Path]) -> tuple[list[str], dict[str, str], str]:
        """Words, variables and working folder, all as of this machine."""
        container, namespace = state.container, self.key[0]
        rewriter = Rewriter(self._mounts(state, volumes), self._services(), namespace)
        given = environment.of_spec(self._host.api, self._pod, container)
        entry = container.get("command") or self._host.images.get(container["image"]) or []
        words = [expand(word, given) for word in [*entry, *(container.get("args") or [])]]
        if not words:
            raise NotReady("CreateContainerError", f"no command, and no entry point for image {container['image']}")
        own = environment.of_image(self._pod, self.folder, self._host.variables)
        variables = own | {name: rewriter.text(value) for name, value in given.items()}
        folder = rewriter.text(container.get("workingDir") or os.getcwd())
        return rewriter.command(words), variables, folder

    def _mounts(self, state: ContainerState, volumes: dict[str, Path]) -> dict[str, Path]:
        container = state.container
        mounts = {container.get("terminationMessagePath", "/dev/termination-log"): state.message_file}
        for mount in container.get("volumeMounts") or []:
            path = volumes[mount["name"]] / mount.get("subPath", "")
            if not path.exists():
                path.mkdir(parents=True)
            mounts[mount["mountPath"].rstrip("/")] = path
        return mounts

    def _services(self) -> set[str]:
        found = self._host.api.store.listed(("", "services"), self.key[0])
        names = {each["metadata"]["name"] for each in found if each["spec"].get("clusterIP") == "None"}
        return names | ({self._pod["spec"]["subdomain"]} if self._pod["spec"].get("subdomain") else set())

    async def _follow(self, state: ContainerState) -> None:
        state.ended(await self._running[state.container["name"]].wait())
        if any(each.code is None for each in self._main):
            self._report()

    async def stop(self, grace: float) -> None:
        """SIGTERM, and after its grace SIGKILL."""
        self._stopping = True
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await self._over.wait()
        except TimeoutError:
            self.kill()

    def signal(self, number: int) -> None:
        for process in self._running.values():
            process.signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        processes.kill_marked(self.uid)

    def abandon(self) -> None:
        """The end of the cluster: no more words, and no more processes."""
        self.is_silent = self._stopping = True
        self.kill()

    def _report(self, over: bool = False) -> None:
        now = self._host.api.store.by_uid(self.uid)
        if now is not None and not self.is_silent:
            edit = self._ended if over else self._going
            self._host.api.change(self._kind, self.key, edit, _MANAGER, "status")

    def _going(self, pod: Object) -> None:
        write_status(pod, self._main, self._first, False)

    def _ended(self, pod: Object) -> None:
        write_status(pod, self._main, self._first, True)

    def _remove(self) -> None:
        """Its containers have ended and it was to be deleted: nothing keeps it any more but finalizers."""
        if self.is_silent or self._host.api.store.by_uid(self.uid) is None:
            return
        try:
            self._host.api.delete(self._kind, self.key, DeleteOptions(grace=0, uid=self.uid))
        except ApiError as error:
            if error.code not in (404, 409):  # someone else was faster
                raise
