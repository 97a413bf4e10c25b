"""The same three pictures with texts in every layout that a builder reads, as their publishers lay them out."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from pyarrow import parquet as pq

from training.data.writer import write_dataset

CAPTIONS = ("a red dog runs on the beach", "two cats sleep on a chair", "3 birds sit on a roof")
QUESTIONS = (("how many dogs are there", "one"), ("what do the cats do", "sleep"), ("where are the birds", "on a roof"))
LICENCE = "CC-BY-4.0"


def jpeg(number: int) -> bytes:
    """A picture of its own for each number."""
    file = io.BytesIO()
    Image.new("RGB", (32, 24), (number * 37 % 256, number * 101 % 256, 40)).save(file, "JPEG")
    return file.getvalue()


def folder(place: Path) -> Path:
    place.mkdir()
    for number, caption in enumerate(CAPTIONS):
        (place / f"{number}.jpg").write_bytes(jpeg(number))
        (place / f"{number}.txt").write_text(caption)
    return place


def lines(place: Path, count: int = 3, caption: Callable[[int], str] = lambda number: CAPTIONS[number % 3]) -> Path:
    """A JSONL file of `count` rows that share three pictures."""
    place.mkdir(parents=True)
    for number in range(3):
        (place / f"{number}.jpg").write_bytes(jpeg(number))
    rows = ({"image": f"{number % 3}.jpg", "text": caption(number), "license": LICENCE} for number in range(count))
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return place / "rows.jsonl"


def llava(place: Path) -> Path:
    lines(place)
    said = [[{"from": "human", "value": f"{q} <image>"}, {"from": "gpt", "value": a}] for q, a in QUESTIONS]
    rows = [{"id": str(n), "image": f"{n}.jpg", "conversations": one} for n, one in enumerate(said)]
    (place / "llava.json").write_text(json.dumps(rows))
    return place / "llava.json"


def parquet(place: Path) -> Path:
    place.mkdir()
    table = {
        "image": [{"bytes": jpeg(number), "path": None} for number in range(3)],
        "question": [question for question, _ in QUESTIONS],
        "answers": [[answer, "nothing", answer] for _, answer in QUESTIONS],
    }
    pq.write_table(pa.table(table), place / "train-00000.parquet", row_group_size=2)
    return place


def tars(place: Path) -> Path:
    place.mkdir()
    for shard in range(2):
        with tarfile.open(place / f"{shard:05d}.tar", "w") as tar:
            for number, caption in list(enumerate(CAPTIONS))[shard * 2 : shard * 2 + 2]:
                about = json.dumps({"id": str(number), "license": LICENCE}).encode()
                parts = {"jpg": jpeg(number), "txt": caption.encode(), "json": about}
                for suffix, content in parts.items():
                    member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return place


def packed(place: Path) -> Path:
    samples = [({"caption": {"en": caption}}, [jpeg(number)]) for number, caption in enumerate(CAPTIONS)]
    write_dataset(place, samples, name="packed", shard_samples=2)
    return place


def coco(place: Path) -> Path:
    (place / "annotations").mkdir(parents=True)
    (place / "train2017").mkdir()
    images: list[Mapping[str, Any]] = []
    said, boxes = [], []
    for number, caption in enumerate(CAPTIONS):
        name = f"{number:012d}.jpg"
        (place / "train2017" / name).write_bytes(jpeg(number))
        images.append({"id": number, "file_name": name, "width": 32, "height": 24, "license": 4})
        said += [{"image_id": number, "id": 10 * number + n, "caption": f"{caption}{' ' * n}"} for n in range(2)]
        boxes.append({"image_id": number, "id": number, "category_id": 18, "bbox": [8, 6, 16, 12], "iscrowd": 0})
    licences = [{"id": 4, "name": "Attribution License", "url": "http://creativecommons.org/licenses/by/2.0/"}]
    whole = {"info": {"year": 2017}, "licenses": licences, "images": images, "annotations": said}
    (place / "annotations" / "captions_train2017.json").write_text(json.dumps(whole))
    whole |= {"annotations": boxes, "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}]}
    (place / "annotations" / "instances_train2017.json").write_text(json.dumps(whole))
    return place


def vqa(place: Path) -> Path:
    (place / "train2014").mkdir(parents=True)
    asked, answered = [], []
    for number, (question, answer) in enumerate(QUESTIONS):
        (place / "train2014" / f"COCO_train2014_{number:012d}.jpg").write_bytes(jpeg(number))
        asked.append({"image_id": number, "question_id": number * 10, "question": question})
        answers = [{"answer": answer, "answer_id": n, "answer_confidence": "yes"} for n in range(10)]
        answered.append({"image_id": number, "question_id": number * 10, "answers": answers})
        answered[-1] |= {"multiple_choice_answer": answer, "answer_type": "other", "question_type": "what"}
    questions = {"info": {}, "data_subtype": "train2014", "questions": asked, "license": {"name": "CC BY 4.0"}}
    (place / "v2_OpenEnded_mscoco_train2014_questions.json").write_text(json.dumps(questions))
    (place / "v2_mscoco_train2014_annotations.json").write_text(json.dumps({"annotations": answered}))
    return place


LAYOUTS: Mapping[str, Callable[[Path], Path]] = {
    "folder": folder,
    "json": lines,
    "llava": llava,
    "parquet": parquet,
    "tar": tars,
    "dataset": packed,
    "coco": coco,
    "vqa": vqa,
}
