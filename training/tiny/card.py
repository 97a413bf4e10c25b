"""The model card and the credits that lie in the checkpoint folder.

Their texts are `card.md` and `NOTICE` beside this file; the measured numbers are put in by `evaluate`.
"""

from pathlib import Path

HERE = Path(__file__).parent
RESULTS = "<!-- results -->"
NOT_MEASURED = "Not measured yet: `python -m training.tiny evaluate` puts the table here."


def write(folder: Path, results: str = NOT_MEASURED) -> None:
    card = (HERE / "card.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(card.replace(RESULTS, results), encoding="utf-8")
    (folder / "NOTICE").write_text((HERE / "NOTICE").read_text(encoding="utf-8"), encoding="utf-8")
