"""Why a training run stops, and with which exit code the process tells its supervisor.

    TrainingError                1   a run went wrong; trying again may help
    ├── BadConfig               42   the job or recipe is wrong: no retry
    ├── BadData                 42   the data is wrong, or too much of it is: no retry
    ├── GateFailed              42   the stage's model is not good enough for what comes after: no retry
    ├── BudgetSpent             42   the next question to a language model could cost more than is left
    ├── FeatureMismatch         42   cached features were made by other weights or another preprocessing
    ├── EndpointGone             1   a language model's server has not answered for long
    ├── NonFinite                1   a loss or gradient is NaN or infinite
    ├── Fenced                   1   a newer attempt of the same stage has started: this one may not publish
    └── Stopped                 75   SIGTERM: a checkpoint was published, run it again to go on

`BadSample` is not in the tree: it never leaves the loader, which skips the sample, counts it and names it.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_BAD_CONFIG = 42
EXIT_STOPPED = 75


class TrainingError(Exception):
    """Root of the tree; `str(error)` is a sentence that names the thing."""

    exit_code: ClassVar[int] = 1


class BadConfig(TrainingError):
    """A job file or a recipe that cannot be run as it stands."""

    exit_code = EXIT_BAD_CONFIG


class BadData(TrainingError):
    """A dataset that is missing, damaged, or has more bad samples than the recipe allows."""

    exit_code = EXIT_BAD_CONFIG


class FeatureMismatch(TrainingError):
    """A feature cache that belongs to other weights, another preprocessing or other data."""

    exit_code = EXIT_BAD_CONFIG


class GateFailed(TrainingError):
    """A metric of the stage's evaluation is below what its gate asks for."""

    exit_code = EXIT_BAD_CONFIG


class BudgetSpent(TrainingError):
    """What is left of the budget may not pay for the next question; what was asked before is kept."""

    exit_code = EXIT_BAD_CONFIG


class EndpointGone(TrainingError):
    """A language model's server has answered nobody for as long as was to be waited."""


class NonFinite(TrainingError):
    """A loss or gradient that is not a finite number."""


class Fenced(TrainingError):
    """A newer attempt of this stage owns the folder."""


class Stopped(TrainingError):
    """The run was asked to stop and has published a checkpoint."""

    exit_code = EXIT_STOPPED


class BadSample(ValueError):
    """One sample that cannot be used: its key (`shard:number`) and why."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason
