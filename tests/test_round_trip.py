"""The whole way: English names, Chinese ones from a language model, training, and a better model at the end.

The pictures are those that come with the checkpoint, their English names go in, and the language model of the tests
knows CLDR's Chinese ones. The model is then examined on the pictures in a mirror and by the true names, which no part
of the builder has seen.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageOps

from tests import builds
from tests.build_rules import EXAMPLES
from tests.llm_process import LlmProcess
from training.data.writer import write_dataset
from training.local import LocalRun
from training.stage_folder import StageFolder

CHECKPOINT = builds.ROOT / "checkpoints" / "ziya-tiny"
STEPS = 300


def shipped() -> list[dict[str, Any]]:
    return json.loads(EXAMPLES.read_text("utf-8"))


def english(place: Path) -> Path:
    """What a person has: pictures and English names."""
    rows = [{"image": str(EXAMPLES.with_name(one["file"])), "text": one["name_en"]} for one in shipped()]
    (place / "names.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place / "names.jsonl"


def mirrored(place: Path) -> None:
    """The examination: the same things seen from the other side, with their true names."""

    def samples() -> Any:
        for one in shipped():
            file = io.BytesIO()
            ImageOps.mirror(Image.open(EXAMPLES.with_name(one["file"]))).save(file, "PNG")
            yield {"caption": {"en": one["name_en"], "zh": one["name_zh"]}}, [file.getvalue()]

    write_dataset(place, samples(), name="mirrored")


def job(place: Path, source: Path, url: str) -> Path:
    told = {"input": str(source), "licence": "MIT", "url": url, "model": "translator", "gates": {"backTranslation": 0}}
    # In a wording that the checkpoint knows: whatever it gains is names, and no manner of speaking.
    asked = [{"task": "caption", "templates": "classify", "language": language} for language in ("en", "zh")]
    checks, learnt = ([{"data": name, **one} for one in asked] for name in ("mirrored", "data"))
    align = {
        "learn": {"projection": 1.0, "llama": 1.0},
        "optimizer": {"steps": STEPS, "batch": 26, "accumulate": 1, "rate": 1e-3, "finalRate": 1e-5, "warmupSteps": 20},
        "images": {"augment": "drawing", "cache": "none"},
        "text": {"rowPositions": 128, "answerTokens": 48},
        "compute": {"precision": "float32", "workers": 0},
    }
    stages = [
        {"name": "data", "type": "data", "builder": "training.build.stage", "options": told, "shards": 2},
        {"name": "before", "type": "eval", "train": {"checks": checks}},
        {"name": "align", "type": "align", "data": learnt, "train": align},
        {"name": "after", "type": "eval", "needs": ["align"], "train": {"checks": checks}},
    ]
    spec = {"model": {"checkpoint": str(CHECKPOINT)}, "output": {"path": str(place)}, "stages": stages}
    whole = {"apiVersion": "ziya.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "round-trip"}, "spec": spec}
    (place / "job.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    return place / "job.yaml"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_data_that_was_built_makes_the_model_better_in_both_languages(tmp_path: Path) -> None:
    mirrored(tmp_path / "mirrored")
    with LlmProcess(tmp_path / "paid.jsonl", None, *builds.SERVER) as server:
        LocalRun(job(tmp_path, english(tmp_path), server.url), tmp_path, lambda _: None).run()
    names = {one["name_en"]: one["name_zh"] for one in shipped()}
    said = [fields["caption"] for fields in builds.records(tmp_path / "data")]
    assert len(said) >= 20
    assert all(names[one["en"]] == one["zh"] for one in said)
    before, after = (StageFolder(tmp_path / name).summary()["metrics"] for name in ("before", "after"))
    for name in ("caption/en.exact", "caption/zh.exact"):
        assert 0 < before[name] < 0.6, before
        assert after[name] >= before[name] + 0.3, (before, after)
