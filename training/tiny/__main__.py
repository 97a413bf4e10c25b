"""`python -m training.tiny [STEP …]`: makes `checkpoints/ziya-tiny` from data, all steps in order.

A step that was killed goes on from its last saved state; a finished step is skipped at once.
"""

import argparse
from pathlib import Path

import torch

from training.tiny import align, connect, evaluate, export, fetch, tokenizer, vision
from training.tiny.emoji import EmojiData
from training.tiny.recipe import Recipe

STEPS = {
    "fetch": fetch.fetch,
    "vision": vision.train,
    "tokenizer": tokenizer.train,
    "connect": connect.train,
    "align": align.train,
    "export": export.export,
    "evaluate": evaluate.evaluate,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.tiny", description=__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"which steps, of {', '.join(STEPS)} (default: all)")
    parser.add_argument("--packages", type=Path, help="an existing node_modules folder with the packages")
    arguments = parser.parse_args()
    if unknown := [step for step in arguments.steps if step not in STEPS]:
        parser.error(f"there is no step {unknown[0]!r}; the steps are {', '.join(STEPS)}")
    recipe = Recipe()
    torch.set_num_threads(recipe.threads)
    data = EmojiData(arguments.packages or recipe.places.packages / "node_modules")
    for step in arguments.steps or STEPS:
        STEPS[step](data, recipe)


if __name__ == "__main__":
    main()
