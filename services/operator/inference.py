"""The InferenceService of a promotion, in the types of the `kserve` package.

KServe keeps the revision before the newest one: `canaryTrafficPercent` says how much of the traffic the newest gets,
without it all. 0 sends everything back to the one before.
"""

from __future__ import annotations

from typing import Any

from services.operator.actions import SetTraffic
from services.operator.cluster import Cluster
from services.operator.resource import Promotion, TrainingJob

MODEL_FORMAT = "ziya-visual"
PROMOTED_BY = "ziya.dev/promoted-by"


def carry_traffic(cluster: Cluster, job: TrainingJob, action: SetTraffic) -> None:
    """Creates or patches; what is there beside the model and its traffic stays. Raises Refused."""
    promotion = job.spec.promotion
    if promotion is None:
        return
    name, by = promotion.inference_service, {PROMOTED_BY: f"{job.name}/{job.uid}"}
    if cluster.inference_service(job.namespace, name) is None:
        cluster.create_inference_service(job.namespace, manifest(job.namespace, promotion, action.uri, by))
        return
    percent = None if action.percent == 100 else action.percent
    predictor = {"canaryTrafficPercent": percent, "model": {"storageUri": action.uri}}
    body = {"metadata": {"annotations": by}, "spec": {"predictor": predictor}}
    cluster.patch_inference_service(job.namespace, name, body)


def manifest(namespace: str, promotion: Promotion, uri: str, annotations: dict[str, str]) -> dict[str, Any]:
    """A new one, which gets all the traffic there is. A Service called ziya-… must not give it variables ZIYA_…."""
    # Not before it is needed: it brings a web server, pandas and gRPC messages whose names tritonclient has, too.
    from kserve import (  # noqa: PLC0415
        V1beta1InferenceService,
        V1beta1InferenceServiceSpec,
        V1beta1ModelFormat,
        V1beta1ModelSpec,
        V1beta1PredictorSpec,
    )

    model = V1beta1ModelSpec(
        model_format=V1beta1ModelFormat(name=MODEL_FORMAT), storage_uri=uri, runtime=promotion.runtime
    )
    service = V1beta1InferenceService(
        api_version="serving.kserve.io/v1beta1",
        kind="InferenceService",
        metadata={"name": promotion.inference_service, "namespace": namespace, "annotations": annotations},
        spec=V1beta1InferenceServiceSpec(predictor=V1beta1PredictorSpec(model=model, enable_service_links=False)),
    )
    made: dict[str, Any] = _plain(service)
    return made


def _plain(value: Any) -> Any:
    """By Kubernetes' names, without what is not set. The official client's own way no longer knows these classes: it
    would write Python's names."""
    if names := getattr(value, "attribute_map", None):
        return {names[name]: _plain(inner) for name in names if (inner := getattr(value, name)) not in (None, "")}
    return value
