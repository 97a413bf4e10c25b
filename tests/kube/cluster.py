"""The way in: a whole small cluster that a test starts, talks to over HTTP, breaks, and stops.

    with Cluster(tmp_path) as cluster:
        with cluster.client() as api:
            kubernetes.client.CoreV1Api(api).create_namespace(…)

Everything runs on one event loop in a thread of its own; what tests call from theirs goes over to it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import yaml
from aiohttp import web
from kubernetes import client as kube
from kubernetes import config as kube_config

from tests.kube import certificate
from tests.kube.crds import CustomResources
from tests.kube.faults import Faults
from tests.kube.garbage import GarbageCollector
from tests.kube.job_controller import JobController
from tests.kube.kubelet import Kubelet
from tests.kube.logs import Logs
from tests.kube.namespaces import Namespaces
from tests.kube.objects import Object
from tests.kube.pod_run import Host
from tests.kube.rbac import Rbac, Use
from tests.kube.server import Server
from tests.kube.tokens import Tokens
from tests.kube.verbs import Api

T = TypeVar("T")
ALL = ("garbage", "jobs", "kubelet")
_NAMESPACES = ("default", "kube-system")


class Cluster:
    """`controllers`: which of ALL act by themselves; what does not, a test does by hand.

    `images` gives the entry point of an image, for containers without a command; `variables` is in the environment of
    every container. Claims live under `folder/claims/NAMESPACE/NAME`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        controllers: Iterable[str] = ALL,
        images: Mapping[str, list[str]] | None = None,
        variables: Mapping[str, str] | None = None,
        nodes: int = 1,
        job_backoff: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.folder = folder
        self.faults = Faults(seed)
        self._controllers = set(controllers)
        self._images, self._variables = dict(images or {}), dict(variables or {})
        self._node_count, self._job_backoff = nodes, job_backoff
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cluster", daemon=True)
        self._clients: list[kube.ApiClient] = []
        self._faulty: list[BaseException] = []
        self._port = 0

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        self.ca_file, self._tls = certificate.write(self.folder)
        self._loop.set_exception_handler(self._note)
        self._thread.start()
        self.run(self._start())
        self.faults.on_partition = lambda cut: self.run(self._close_door() if cut else self._open_door())
        self.admin_token = self.call(lambda: self._tokens.person("admin", "system:masters"))
        self.kubeconfig = self._write_kubeconfig("admin", self.admin_token)

    def stop(self) -> None:
        for client in self._clients:
            client.rest_client.pool_manager.clear()
            client.close()
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._faulty:
            raise BaseExceptionGroup("a controller of the tests' own cluster has failed", self._faulty)

    # Talking to it.

    @property
    def url(self) -> str:
        """TLS, since kubectl keeps its token to itself otherwise; `ca_file` is to be trusted."""
        return f"https://127.0.0.1:{self._port}"

    def client(self) -> kube.ApiClient:
        """The official client, as an administrator. It is closed with the cluster."""
        return self._client(self.kubeconfig)

    def client_as(self, namespace: str, account: str) -> kube.ApiClient:
        """As that service account, with no more rights than its Roles give."""
        return self._client(self.kubeconfig_as(namespace, account))

    def kubeconfig_as(self, namespace: str, account: str) -> Path:
        return self._write_kubeconfig(f"{namespace}.{account}", self.token(namespace, account), namespace)

    def token(
        self,
        namespace: str,
        account: str,
        audiences: Iterable[str] = (),
        pod: str | None = None,
        seconds: float = 3600,
    ) -> str:
        """A token of a service account, which is made if it is not there."""
        return self.call(lambda: self._issue(namespace, account, list(audiences), pod, seconds))

    def requests_of(self, user: str) -> set[Use]:
        """All that `user` (`system:serviceaccount:NAMESPACE:NAME`) has asked for, allowed or not."""
        return self.call(lambda: set(self._access.used[user]))

    def refused_of(self, user: str) -> set[Use]:
        return self.call(lambda: set(self._access.refused[user]))

    def compact(self) -> None:
        """Forgets the past: watches from an old version and lists left off get 410."""
        self.call(self._compact)

    def set_controllers(self, *names: str) -> None:
        """Switches on exactly these of ALL."""
        self.call(lambda: self._switch(set(names)))

    def claim_folder(self, namespace: str, claim: str) -> Path:
        return self.folder / "claims" / namespace / claim

    # Reaching its thread.

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)

    def call(self, work: Callable[[], T]) -> T:
        async def called() -> T:
            return work()

        return self.run(called())

    # Inside.

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What a controller did not expect must not pass unseen; that connections break is no such thing."""
        error = context.get("exception")
        if error is None or isinstance(error, OSError):
            loop.default_exception_handler(context)
        else:
            self._faulty.append(error)

    async def _start(self) -> None:
        self.api = Api()
        self._access, self._tokens = Rbac(self.api.store), Tokens(self.api)
        CustomResources(self.api)
        Namespaces(self.api)
        self._garbage = GarbageCollector(self.api)
        self._jobs = JobController(self.api, self._job_backoff)
        for name in _NAMESPACES:
            self.api.create(self.api.kinds["namespaces"], "", {"metadata": {"name": name}})
        host = Host(self.api, self._tokens, self.folder, self._images, self._variables)
        self.kubelet = Kubelet(host, self.call, self._node_count)
        self._switch(self._controllers)
        log = Logs(self.api, self.kubelet).answer
        self._server = Server(self.api, self._access, self._tokens, self.faults, log)
        app = self._server.application()
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        await self._open_door()

    async def _open_door(self) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._tls, reuse_address=True)
        await self._site.start()
        self._port = self._runner.addresses[0][1]

    async def _close_door(self) -> None:
        await self._site.stop()
        self._cut_connections()

    def _cut_connections(self) -> None:
        server = self._runner.server
        for connection in list(server.connections) if server is not None else []:
            if connection.transport is not None:
                connection.transport.abort()

    async def _stop(self) -> None:
        self._jobs.stop()
        self._garbage.active = False
        await self.kubelet.close()
        self._cut_connections()
        await self._runner.cleanup()
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._loop.shutdown_default_executor()

    def _switch(self, names: set[str]) -> None:
        unknown = names - set(ALL)
        assert not unknown, unknown
        for name, controller in (("garbage", self._garbage), ("jobs", self._jobs), ("kubelet", self.kubelet)):
            if name in names:
                controller.resume()
            else:
                controller.active = False

    def _compact(self) -> None:
        self.api.store.compact()
        self._server.answers.lists.forget()

    def _issue(self, namespace: str, account: str, audiences: list[str], pod: str | None, seconds: float) -> str:
        accounts = self.api.kinds["serviceaccounts"]
        held = self.api.store.get(accounts.id, (namespace, account))
        if held is None:
            held = self.api.create(accounts, namespace, {"metadata": {"name": account}})
        bound = self.api.read(self.api.kinds["pods"], (namespace, pod)) if pod else None
        return self._tokens.issue(held, audiences, seconds, bound)

    def _client(self, path: Path) -> kube.ApiClient:
        client = kube_config.new_client_from_config(str(path))
        self._clients.append(client)
        return client

    def _write_kubeconfig(self, user: str, token: str, namespace: str = "default") -> Path:
        place = {"cluster": "double", "user": user, "namespace": namespace}
        document: Object = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "double",
            "clusters": [
                {"name": "double", "cluster": {"server": self.url, "certificate-authority": str(self.ca_file)}}
            ],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "double", "context": place}],
        }
        path = self.folder / f"kubeconfig-{user}.yaml"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        path.chmod(0o600)
        return path
