"""A target under atheris: inputs are bytes, changed so that they reach branches of our code not seen before.

libFuzzer ends the process that it runs in, so each target has one of its own, which keeps its counts in a file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings

from tests.fuzz.check import Outcome, Report, Target, judge

# Where `make fuzz` puts atheris, beside .venv's packages.
ATHERIS = Path(".venv/atheris")
OURS = ["ziya.wire", "ziya.images", "ziya.image_parts", "services.gateway", "services.llama.request"]


def run(name: str, seconds: int) -> Report:
    """Lets atheris look for so long. Raises CalledProcessError when it could not begin."""
    with tempfile.TemporaryDirectory(prefix="zv") as folder:
        file = Path(folder) / "counts.json"
        argv = [sys.executable, "-m", "tests.fuzz.coverage", name, str(file), "--seconds", str(seconds)]
        path = os.pathsep.join([str(ATHERIS), os.environ.get("PYTHONPATH", "")])
        subprocess.run(argv, env={**os.environ, "PYTHONPATH": path}, check=True, stderr=subprocess.DEVNULL)
        kept = json.loads(file.read_text("utf-8"))
    report = Report(f"{name}, by coverage", slowest=kept["slowest"], growth=kept["growth"], found=kept["found"])
    report.counts |= {Outcome(outcome): count for outcome, count in kept["counts"].items()}
    return report


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    import atheris  # noqa: PLC0415 (only `make fuzz` has it)

    with atheris.instrument_imports(include=OURS):
        from tests.fuzz.pure import PURE  # noqa: PLC0415

    (target,) = [one for one in PURE if one.name == options.name]
    report = Report(target.name)
    warnings.simplefilter("ignore")
    feed = _reader(target, report)

    def each(data: bytes) -> None:
        feed(data)
        if report.inputs % 100 == 1:
            _keep(report, options.file)

    atheris.Setup([sys.argv[0], f"-max_total_time={options.seconds}", "-max_len=4096", "-timeout=60"], each)
    atheris.Fuzz()


def _reader(target: Target, report: Report) -> Callable[[bytes], object]:
    """Feeds what hypothesis makes of bytes; some bytes make nothing, and are not counted."""

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(target.inputs)
    def each(value: object) -> None:
        judge(target, value, report)

    return each.hypothesis.fuzz_one_input  # type: ignore[attr-defined, no-any-return]


def _keep(report: Report, file: Path) -> None:
    kept = {"counts": report.counts, "slowest": report.slowest, "growth": report.growth, "found": report.found[:20]}
    new = file.with_suffix(".new")
    new.write_text(json.dumps(kept), "utf-8")
    new.replace(file)


if __name__ == "__main__":
    main()
