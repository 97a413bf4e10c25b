"""Pictures in a build: shown to a model that can see, and scored with their texts by a checkpoint of our own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import builds
from tests.build_inputs import CAPTIONS, jpeg
from tests.build_rules import chinese
from tests.llm_process import LlmProcess

pytestmark = pytest.mark.timeout(300)
CHECKPOINT = builds.ROOT / "checkpoints" / "ziya-tiny"
FREE = ("--back-translation", "0")


def test_a_model_that_can_see_is_shown_the_pictures(tmp_path: Path) -> None:
    """No text says what they show: what the answers say of them can only come from the pictures."""
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    rows = ({"image": f"{number}.jpg", "ocr": f"page {number}", "license": "CC0-1.0"} for number in range(3))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    how = ("--no-translate", "--generate", "description", "--show-images", *FREE)
    with LlmProcess(tmp_path / "paid.jsonl", None, "--rule", "tests.build_rules:seeing") as server:
        builds.build(tmp_path / "rows.jsonl", tmp_path / "out", server.url, *how)
    answers = [fields["description"][0]["answer"] for fields in builds.records(tmp_path / "out")]
    assert [answer["en"] for answer in answers] == [f"One can see {caption}." for caption in CAPTIONS]


@pytest.mark.parametrize("shards", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_text_of_another_picture_is_rejected_and_the_manifest_names_the_judge(shards: str, tmp_path: Path) -> None:
    pictures = CHECKPOINT / "examples"
    rows = [
        {"image": f"{picture}.webp", "text": text, "license": "Apache-2.0"}
        for picture, text in (("lemon", "lemon"), ("lemon", "ambulance"), ("badger", "badger"))
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    how = ("--agreement", str(CHECKPOINT), "--least-agreement", "0.36", "--images", str(pictures), *FREE)
    with LlmProcess(tmp_path / "paid.jsonl", None, *builds.SERVER) as server:
        builds.build(tmp_path / "rows.jsonl", tmp_path / "out", server.url, *how, "--shards", shards)
    kept = [fields["caption"] for fields in builds.records(tmp_path / "out")]
    assert kept == [{"en": name, "zh": chinese(name)} for name in ("lemon", "badger")]
    told = builds.manifest(tmp_path / "out")
    assert told["made"]["rejects"] == {"agreement": {"text and picture disagree": 1}}
    prints = json.loads((CHECKPOINT / "config.json").read_text())["fingerprints"]
    assert told["agreement"] == {part: prints[part] for part in ("vision", "qformer")}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (sample,) = (entry for _, entry in report["tally"]["samples"]["rejected/agreement"])
    assert sample["texts"]["zh"] == [["caption", chinese("ambulance")]]
    assert sample["image"].startswith("data:image/jpeg;base64,")
