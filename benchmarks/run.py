"""All benchmarks one after another, each in a process of its own: what `make bench` prints.

    python -m benchmarks.run [NAME …]

The answers are measured only where the drawings have been fetched (`python -m training.tiny.fetch`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks.answers import PACKAGES

SERVING = ("first_token", "throughput")
ENGINES = ("engines", "engine_in_stack", "vision_path", "vit_attention", "engine_reuse")
TRAINING = ("fine_tuning", "pretraining", "muon", "training_saves", "instruct_13b")
OPERATOR = ("operator_latency", "operator_recovery", "operator_idle")
CAPACITY = ("simulated_stack", "scaling")
ALL = (*SERVING, *ENGINES, *TRAINING, *OPERATOR, *CAPACITY, "answers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(ALL)} (default: all)")
    names = parser.parse_args().names or ALL
    if unknown := [name for name in names if name not in ALL]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(ALL)}")
    for name in names:
        print(f"\n## {name.replace('_', ' ')}\n", flush=True)
        if name == "answers" and not PACKAGES.is_dir():
            print(f"not measured: {PACKAGES} is not there (python -m training.tiny.fetch)")
            continue
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)


if __name__ == "__main__":
    main()
