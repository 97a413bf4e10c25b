"""`ziya train submit|list|status|logs|suspend|resume`: training jobs on a cluster, in any kubeconfig."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from cli.cluster import connect
from cli.job_logs import JobLogs
from cli.job_page import page, rows, show
from cli.text import CommandError, remark, say
from cli.training_jobs import TrainingJobs, is_over
from training.errors import BadConfig
from training.job import TrainingJob, load

WATCH_SECONDS = 2.0
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The job's name.")]
Kubeconfig = Annotated[
    Path | None, typer.Option(help="File that says where the cluster is. [default: $KUBECONFIG or ~/.kube/config]")
]
Context = Annotated[str | None, typer.Option(help="Context of that file. [default: its current one]")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="[default: the context's own]")]


@app.callback()
def train() -> None:
    """Training jobs on a cluster."""


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="The TrainingJob's YAML file.")],
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Check the file and hand it to the cluster, where the operator runs its stages."""
    job = _checked(file)
    own = job.metadata.namespace
    if own and namespace and own != namespace:
        raise CommandError(f"{file}: metadata.namespace is {own}, not {namespace}: leave one of the two out", 2)
    jobs = TrainingJobs(connect(kubeconfig, context, namespace or own))
    body = job.model_dump(mode="json", by_alias=True, exclude_unset=True)
    body["metadata"]["namespace"] = jobs.cluster.namespace
    jobs.create(body)
    name, where = job.metadata.name, f" -n {namespace or own}" if namespace or own else ""
    say(f"submitted training job {name} to namespace {jobs.cluster.namespace}")
    say(f"  ziya train status {name}{where} --watch    how far it is")
    say(f"  ziya train logs {name}{where} --follow     what it prints")
    say(f"  ziya train suspend {name}{where}           let it save a checkpoint and stop")


def _checked(file: Path) -> TrainingJob:
    try:
        job = load(file)
    except BadConfig as error:
        raise CommandError(str(error), error.exit_code) from error
    if job.spec.output.pvc is None:
        raise CommandError(
            f"{file}: spec.output.pvc: is missing: on a cluster results go to a PersistentVolumeClaim",
            BadConfig.exit_code,
        )
    return job


@app.command("list")
def list_jobs(
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Not of one namespace alone.")] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """List the training jobs."""
    jobs = TrainingJobs(connect(kubeconfig, context, namespace))
    found = jobs.listed(everywhere=everywhere)
    if not found:
        say("no training jobs" + ("" if everywhere else f" in namespace {jobs.cluster.namespace}"))
        return
    show(rows(found, datetime.now(UTC), everywhere=everywhere))


@app.command()
def status(
    name: Name,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on until the job is over; fails if it fails.")
    ] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Show how far each stage is, what holds the job up, and how its last attempt failed."""
    jobs = TrainingJobs(connect(kubeconfig, context, namespace))
    if watch:
        _watch(jobs, name, Console())
    else:
        show(page(jobs.get(name), datetime.now(UTC)))


def _watch(jobs: TrainingJobs, name: str, console: Console) -> None:
    """On a terminal in place, else a page for each change."""
    job, shown = jobs.get(name), None
    with Live(console=console, auto_refresh=False) as live:
        while True:
            if console.is_terminal:
                live.update(page(job, datetime.now(UTC)), refresh=True)
            elif job.get("status") != shown:
                show(page(job, datetime.now(UTC)))
                shown = job.get("status")
            if is_over(job):
                break
            time.sleep(WATCH_SECONDS)
            job = jobs.get(name)
    if job["status"]["phase"] == "Failed":
        raise CommandError(f"training job {name} has failed")


@app.command()
def logs(
    name: Name,
    stage: Annotated[str | None, typer.Option(help="Of which stage. [default: the one it is at]")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of which attempt. [default: the newest]")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the stage is over.")] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Show what the processes of a stage print; of several nodes with the node's number before each line."""
    shown = JobLogs(TrainingJobs(connect(kubeconfig, context, namespace)), name, stage, say, remark)
    if follow:
        shown.follow(attempt)
    else:
        shown.print(attempt)


@app.command()
def suspend(name: Name, kubeconfig: Kubeconfig = None, context: Context = None, namespace: Namespace = None) -> None:
    """Let the running stage save a checkpoint and stop, and start nothing more."""
    jobs = TrainingJobs(connect(kubeconfig, context, namespace))
    if _switched(jobs, name, suspend=True):
        say(f"{name}: saves a checkpoint and stops; `ziya train resume {name}` lets it go on")


@app.command()
def resume(name: Name, kubeconfig: Kubeconfig = None, context: Context = None, namespace: Namespace = None) -> None:
    """Let a suspended job go on from its checkpoint."""
    jobs = TrainingJobs(connect(kubeconfig, context, namespace))
    if _switched(jobs, name, suspend=False):
        say(f"{name}: goes on")


def _switched(jobs: TrainingJobs, name: str, *, suspend: bool) -> bool:
    """False when there was nothing to do. Raises CommandError for a job that is over."""
    job = jobs.get(name)
    if is_over(job):
        raise CommandError(f"training job {name} is over ({job['status']['phase']}): nothing is left to do")
    if bool(job["spec"].get("suspend")) is suspend:
        say(f"{name}: is {'suspended already' if suspend else 'not suspended'}")
        return False
    jobs.set_suspend(name, suspend)
    return True
