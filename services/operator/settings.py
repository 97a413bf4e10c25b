"""Settings of the operator's two programs, the watcher and the Celery worker, which read the same environment."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from ziya.settings import ProcessSettings


class OperatorSettings(ProcessSettings):
    """`ZIYA_OPERATOR_…`; see ziya/settings.py for those that every program has."""

    program: ClassVar[str] = "operator"

    # There is no model here; the name is known because all programs can run in one environment.
    checkpoint: Path = Path()
    # Where the broker is; nothing in it needs to survive.
    operator_broker_url: str = "redis://127.0.0.1:6379/0"
    # The image of training pods, where a job names none.
    operator_trainer_image: str = "ziya-visual-trainer:latest"
    # The account of training pods; it may do nothing.
    operator_trainer_account: str = "ziya-trainer"
    # Only jobs of this namespace are looked at; empty means all.
    operator_namespace: str = ""
    # A kubeconfig; empty means the pod's own account.
    operator_kubeconfig: str = ""
    # Everything that is not over is looked at again this often, whatever messages were lost.
    operator_resync_seconds: float = Field(default=30.0, gt=0)
    # How often the progress of one job may be written into its status.
    operator_progress_seconds: float = Field(default=10.0, ge=0)
    # A pod that has not ended so long after its grace period is force-deleted: its node is gone.
    operator_node_lost_seconds: float = Field(default=600.0, gt=0)
    # When the broker has been away so long, the watcher itself says so in the jobs' conditions.
    operator_broker_silent_seconds: float = Field(default=60.0, gt=0)
    # And when a job was deleted so long ago meanwhile, the watcher itself lets it go.
    operator_finalize_seconds: float = Field(default=120.0, gt=0)
    # Where training pods reach the progress endpoint; empty means that nothing is posted.
    operator_progress_url: str = ""
    operator_progress_host: str = "127.0.0.1"
    operator_progress_port: int = Field(default=9003, ge=0, le=65535)
    operator_progress_audience: str = "ziya-operator"
    # The port of the first process, by which the processes of a gang find one another.
    operator_rendezvous_port: int = Field(default=29500, ge=1, le=65535)
    # Where the data worker sees the claims: `<folder>/<namespace>/<claim>`, or one claim that all jobs write to.
    operator_claims_folder: str = "/claims"
    # Touched by the worker when it has carried out a message to itself; a liveness probe looks at its age.
    operator_heartbeat_file: str = "/tmp/ziya-operator-heartbeat"
    # Processes of one worker.
    operator_concurrency: int = Field(default=2, ge=1)
