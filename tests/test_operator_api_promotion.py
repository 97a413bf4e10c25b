"""The operator over the Kubernetes API: a model takes over the traffic in steps, and goes back when it must.

KServe is played by the tests, and Prometheus by a few lines on a real socket.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from tests.kube.objects import Object
from tests.operator_objects import KSERVE, SERVICES
from tests.operator_space import OperatorSpace, marks

pytest_plugins = ("tests.operator_space_fixtures",)
pytestmark = marks(__name__)

TRAIN: Object = {"name": "chat", "type": "chat", "data": [{"data": "d"}]}
SERVE: Object = {"name": "serve", "type": "promote", "needs": ["chat"]}
OLD = "pvc://results/before/chat/model"
QUERY = 'sum(rate(ziya_gateway_requests_total{outcome="ok"}[10m]))'


class Prometheus(BaseHTTPRequestHandler):
    """Answers instant queries with `value`; None is no sample."""

    value: ClassVar[float | None] = 1.0
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(parse_qs(urlsplit(self.path).query)["query"][0])
        result = [] if self.value is None else [{"metric": {}, "value": [0, str(self.value)]}]
        body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def prometheus(answer: float | None) -> Iterator[tuple[str, type[Prometheus]]]:
    """Its address, and the class on which `value` is set."""

    class Mine(Prometheus):
        value, asked = answer, []

    with ThreadingHTTPServer(("127.0.0.1", 0), Mine) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", Mine
        server.shutdown()
        thread.join()


def submit(space: OperatorSpace, name: str, **promotion: Any) -> str:
    """A job whose model is trained and about to be promoted, where another one is served; the new model's URI."""
    predictor = {"model": {"modelFormat": {"name": "ziya-visual"}, "storageUri": OLD}, "minReplicas": 2}
    api_version, spec = "/".join(KSERVE), {"predictor": predictor}
    body = {"apiVersion": api_version, "kind": "InferenceService", "metadata": {"name": name}, "spec": spec}
    space.objects.create_namespaced_custom_object(*KSERVE, space.namespace, SERVICES, body)
    space.submit(name, TRAIN, SERVE, promotion={"inferenceService": name, "stepSeconds": 0, **promotion})
    [pod] = space.attempt(name, "chat")
    space.kubelet.succeed(pod, stage="chat", step=2, artifact={"path": "chat/model", "digest": "sha256:1"})
    space.state(name, "serve", "Running")
    uri: str = space.stage(name, "chat")["artifact"]["uri"]
    return uri


def predictor(space: OperatorSpace, name: str) -> Object:
    found = space.inference(name)
    assert found is not None
    told: Object = found["spec"]["predictor"]
    return told


def serves(space: OperatorSpace, name: str, percent: int | None) -> None:
    space.until(lambda: predictor(space, name).get("canaryTrafficPercent") == percent, name)


def test_traffic_rises_while_the_gate_holds(space: OperatorSpace) -> None:
    with prometheus(0.999) as (address, metrics):
        gate = {"prometheus": address, "query": QUERY, "atLeast": 0.995}
        new = submit(space, "rise", steps=[10, 50, 100], gate=gate)
        for percent in (10, 50, None):
            serves(space, "rise", percent)
            assert predictor(space, "rise")["model"]["storageUri"] == new
            assert space.status("rise")["phase"] == "Running"
            space.make_ready("rise")
        job = space.reach("rise", "Complete")
    assert QUERY in metrics.asked
    assert job["status"]["stages"][1]["canary"]["previousUri"] == OLD
    assert job["status"]["display"]["step"] == "100%"
    assert space.condition("rise", "Promoted")["status"] == "True"
    # What was there beside the model and its traffic has stayed.
    assert predictor(space, "rise")["minReplicas"] == 2
    found = space.inference("rise") or {}
    assert found["metadata"]["annotations"]["ziya.dev/promoted-by"].startswith("rise/")


def test_all_traffic_goes_back_when_the_gate_fails(space: OperatorSpace) -> None:
    with prometheus(0.999) as (address, metrics):
        gate = {"prometheus": address, "query": QUERY, "atLeast": 0.995}
        submit(space, "fall", steps=[10, 50, 100], gate=gate)
        serves(space, "fall", 10)
        space.make_ready("fall")
        serves(space, "fall", 50)
        metrics.value = 0.9
        space.make_ready("fall")
        job = space.reach("fall", "Failed")
    assert predictor(space, "fall")["canaryTrafficPercent"] == 0
    told = space.condition("fall", "Promoted")
    assert (told["status"], told["reason"]) == ("False", "GateFailed")
    assert "is 0.9 at 50 %, it must be at least 0.995" in told["message"]
    assert job["status"]["stages"][1]["phase"] == "Failed"
    space.tell("fall", "GateFailed")


def test_no_answer_of_the_gate_holds_the_traffic_where_it_is(space: OperatorSpace) -> None:
    with prometheus(None) as (address, metrics):
        gate = {"prometheus": address, "query": QUERY, "atLeast": 0.995}
        submit(space, "mute", steps=[10, 100], gate=gate)
        serves(space, "mute", 10)
        space.make_ready("mute")
        space.until(lambda: space.condition("mute", "Progressing").get("reason") == "GateUnknown", "mute")
        assert space.condition("mute", "Progressing")["status"] == "Unknown"
        assert predictor(space, "mute")["canaryTrafficPercent"] == 10
        metrics.value = 1.0
        serves(space, "mute", None)
        space.make_ready("mute")
        space.reach("mute", "Complete")


def test_a_revision_that_does_not_become_ready_is_taken_back(space: OperatorSpace) -> None:
    submit(space, "stuck", steps=[25, 100], readySeconds=1)
    space.reach("stuck", "Failed")
    assert predictor(space, "stuck")["canaryTrafficPercent"] == 0
    assert space.condition("stuck", "Promoted")["reason"] == "NotReady"
