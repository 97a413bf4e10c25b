"""The npm packages with the names and drawings, in the exact versions of package.json.

Needs `npm`. No package runs a script of its own. A folder that has the packages already is left alone.
"""

import argparse
import json
import shutil
import subprocess
from pathlib import Path

MANIFEST = Path(__file__).with_name("package.json")
OPTIONS = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock")


def install(folder: Path) -> Path:
    """The node_modules in `folder` with every package of the manifest, installed if one is missing or another version.

    Raises FileNotFoundError without npm.
    """
    modules = folder / "node_modules"
    if _complete(modules):
        print(f"packages are in {modules}", flush=True)
    else:
        _npm_install(folder)
    return modules


def _complete(modules: Path) -> bool:
    wanted: dict[str, str] = json.loads(MANIFEST.read_text("utf-8"))["dependencies"]
    return all(_version(modules / name / "package.json") == version for name, version in wanted.items())


def _version(manifest: Path) -> str | None:
    return str(json.loads(manifest.read_text("utf-8")).get("version")) if manifest.is_file() else None


def _npm_install(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed: install Node.js, or give a folder with the packages")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(MANIFEST, folder / MANIFEST.name)
    print("npm install (0.5 GB on disk, once)", flush=True)
    subprocess.run([npm, "install", *OPTIONS], cwd=folder, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.tiny.fetch", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/tiny/job/data/packages"))
    install(parser.parse_args().folder)


if __name__ == "__main__":
    main()
