"""vLLM's own numbers, as its scheduler reports them after each step, in our words."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from services.llama.engine.seam import Stats


class Recorder:
    """What vLLM calls a stat logger. It reports after a step only: when nothing runs, the last report is old."""

    def __init__(self) -> None:
        self._running = self._blocks = self._preempted = self._steps = 0
        self._use = self._seconds = 0.0
        self._before: float | None = None

    def of_vllm(self, config: Any, _engine: int) -> Recorder:
        """vLLM's factory of stat loggers: called once, before the first step."""
        self._config = config
        return self

    def log_engine_initialized(self) -> None:
        self._blocks = self._config.cache_config.num_gpu_blocks or 0

    def log(self) -> None:
        """vLLM calls it now and then; there is nothing to print."""

    def record(self, scheduler_stats: Any, iteration_stats: Any, **_others: Any) -> None:
        now = time.perf_counter()
        if iteration_stats is not None:
            self._preempted += iteration_stats.num_preempted_reqs
            self._steps += 1
            if self._before is not None:
                self._seconds += now - self._before
        if scheduler_stats is not None:
            self._running, self._use = scheduler_stats.num_running_reqs, scheduler_stats.kv_cache_usage
        self._before = now if self._running else None

    def stats(self, requests: int, slots: int, counted: Mapping[str, int]) -> Stats:
        """`requests` are open now, which a report may not know yet."""
        running = min(self._running, requests)
        return Stats(
            running=running,
            waiting=requests - running,
            slots=slots,
            blocks=self._blocks,
            blocks_used=round(self._use * self._blocks) if requests else 0,
            preempted=self._preempted,
            steps=self._steps,
            step_seconds=self._seconds,
            **counted,
        )
