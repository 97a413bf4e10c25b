"""How every Python service starts: settings from the environment, JSON logs, one event loop, one exit status.

Status 2 means that a setting, the checkpoint or a certificate is wrong, which a restart will not cure; a supervisor
may give up.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ziya import tracing
from ziya.checkpoint import CheckpointError
from ziya.event_loop import EventLoop
from ziya.settings import ProcessSettings, SettingsError
from ziya.telemetry import configure_logging

SettingsT = TypeVar("SettingsT", bound=ProcessSettings)
log = logging.getLogger(__name__)


def run(
    kind: type[SettingsT],
    main: Callable[[SettingsT], Coroutine[Any, Any, None]],
    *,
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = EventLoop,
) -> None:
    """Reads `kind` from the environment and runs `main` with it until it returns."""
    settings = kind.load()
    configure_logging(kind.program, settings.log_level)
    try:
        tracing.start(settings)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main(settings))
    except (CheckpointError, SettingsError) as error:
        log.critical("%s", error)
        sys.exit(2)
    finally:
        tracing.stop()
