"""What the operator counts; docs/operations.md says what each means."""

from __future__ import annotations

from ziya.telemetry import Metrics

PHASES = ("Pending", "Queued", "Running", "Suspended", "Complete", "Failed")


class OperatorMetrics:
    def __init__(self) -> None:
        made = Metrics("operator")
        self.registry = made.registry
        self.events = made.counter("events_total", "Watch events seen, by kind of object.", ["kind"])
        self.hints = made.counter("hints_total", "Messages published, by task.", ["task"])
        self.broker_failures = made.counter("broker_failures_total", "Messages that the broker did not take.")
        self.resyncs = made.counter("resyncs_total", "Full looks at all jobs, by outcome.", ["outcome"])
        self.jobs = made.gauge("jobs", "TrainingJobs by phase, as of the last resync.", ["phase"])
        self.queue_waiting = made.gauge("queue_waiting", "Messages that no worker has taken yet, by queue.", ["queue"])
        self.progress = made.counter("progress_posts_total", "Posts of trainers, by answer.", ["answer"])
