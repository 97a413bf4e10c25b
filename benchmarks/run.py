"""All benchmarks one after another, each in a process of its own: what `make bench` prints.

The answers are measured only where the drawings have been fetched (`python -m training.tiny fetch`).
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.answers import PACKAGES


def main() -> None:
    modules = ["first_token", "throughput", *(["answers"] if PACKAGES.is_dir() else [])]
    for module in modules:
        print(f"\n## {module.replace('_', ' ')}\n", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{module}"], check=True)
    if "answers" not in modules:
        print(f"\nanswers were not measured: {PACKAGES} is not there (python -m training.tiny fetch)")


if __name__ == "__main__":
    main()
