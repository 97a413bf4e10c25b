"""`python -m services.operator.worker [control|data …]`: a Celery worker for the queues named, by default both.

It replaces itself by the same program with one variable set, which Celery reads when it is imported: SIGTERM, which is
what Kubernetes sends, then lets running tasks end and gives back the others, instead of waiting for ever.
"""

from __future__ import annotations

import os
import sys

REMAP = "REMAP_SIGTERM"


def main() -> None:
    arguments = [sys.executable, "-m", "services.operator.consuming", *sys.argv[1:]]
    os.execve(sys.executable, arguments, {**os.environ, REMAP: "SIGQUIT"})


if __name__ == "__main__":
    main()
