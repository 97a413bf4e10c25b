"""Step `fetch`: the npm packages with the names and drawings, in the exact versions of package.json.

Needs `npm`. No package runs a script of its own. A folder that has the packages already is left alone.
"""

import shutil
import subprocess
from pathlib import Path

from training.tiny.emoji import EmojiData
from training.tiny.recipe import Recipe

MANIFEST = Path(__file__).with_name("package.json")
OPTIONS = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock")


def fetch(data: EmojiData, recipe: Recipe) -> None:
    if (data.node_modules / "emoji-datasource" / "emoji.json").is_file():
        print(f"fetch: packages are in {data.node_modules}", flush=True)
        return
    if data.node_modules != recipe.places.packages / "node_modules":
        raise FileNotFoundError(f"{data.node_modules} does not hold the packages of {MANIFEST.name}")
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed; install Node.js, or name a folder with --packages")
    folder = recipe.places.packages
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(MANIFEST, folder / MANIFEST.name)
    print("fetch: npm install (0.5 GB on disk, once)", flush=True)
    subprocess.run([npm, "install", *OPTIONS], cwd=folder, check=True)
