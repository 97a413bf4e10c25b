"""`ziya data pack`: pictures and texts as people have them become a dataset; what cannot be used is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.data import app
from cli.text import CommandError
from tests.test_shards import content, picture
from training.data.shards import Dataset


def pack(source: Path, output: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["pack", str(source), str(output), *options])


def packed(source: Path, output: Path, *options: str) -> tuple[list[str], Dataset]:
    """The lines that were printed, and the dataset."""
    result = pack(source, output, *options)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout.splitlines(), Dataset.open(str(output))


def refusal(source: Path, output: Path, *options: str) -> str:
    result = pack(source, output, *options)
    assert isinstance(result.exception, CommandError)
    assert result.exception.status == 2
    return str(result.exception)


def lines(path: Path, *objects: Any) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in objects))
    return path


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A folder with two good pictures, a cut one and one that is none."""
    folder = tmp_path / "album"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.png").write_bytes(picture(1))
    (folder / "sub" / "b.jpg").write_bytes(picture(2, "JPEG"))
    (folder / "cut.png").write_bytes(picture(3)[:20])
    (folder / "none.png").write_bytes(b"<html>")
    return folder


def test_lines(album: Path, tmp_path: Path) -> None:
    both = {"caption": {"en": "two", "zh": "两张"}, "group": "g", "labels": {"concept": "pair"}}
    source = lines(
        album / "records.jsonl",
        {"image": "a.png", "caption": "one"},
        {"images": ["a.png", "sub/b.jpg"], **both},
        {"caption": "no picture at all", "images": []},
        {"image": "a.png", "name": {"en": "a field of one's own"}},
    )
    source.write_bytes(b"\xef\xbb\xbf" + source.read_bytes().replace(b"}\n", b"}\r\n\r\n", 1))
    said, dataset = packed(source, tmp_path / "set", "--name", "mine", "--shard-samples", "3")
    assert said == [f"packed 4 samples, 4 images, 2 shards: {tmp_path / 'set'}"]
    one, two = picture(1), picture(2, "JPEG")
    assert content(dataset) == [
        ({"caption": "one"}, [one]),
        (both, [one, two]),
        ({"caption": "no picture at all"}, []),
        ({"name": {"en": "a field of one's own"}}, [one]),
    ]
    assert (dataset.name, dataset.shard_sizes, dict(dataset.labels)) == ("mine", (3, 1), {"concept": ("pair",)})


def test_bad_lines_are_skipped_counted_and_named(album: Path, tmp_path: Path) -> None:
    source = lines(
        album / "records.jsonl",
        {"image": "lost.png", "caption": "a"},
        {"image": "cut.png", "caption": "a"},
        {"image": "none.png", "caption": "a"},
        {"image": "a.png", "caption": "  "},
        {"image": "a.png", "caption": {"en": "a", "zh": ""}},
        {"image": "a.png", "vqa": [{"question": "What?", "answer": []}]},
        {"image": "a.png", "group": "g"},
        {"image": 7, "caption": "a"},
        {"image": "\ud800.png", "caption": "a"},
        {"image": "a.png", "caption": "\ud800"},
        {"image": "a.png", "caption": "a", "labels": ["x"]},
        ["no", "object"],
        {"image": "a.png", "caption": "the good one"},
    )
    with source.open("ab") as file:
        file.write(b'{"image": "a.png", "caption": \n\xff\n')
    said, dataset = packed(source, tmp_path / "set")
    assert content(dataset) == [({"caption": "the good one"}, [picture(1)])]
    assert said[0] == (
        "skipped 14 of 15: 3 × missing image, 2 × wrong image, 3 × empty text, 1 × missing text, 1 × wrong text, "
        "1 × wrong labels, 3 × wrong JSON"
    )
    named = "\n".join(said[1:-1])
    assert len(said) == 16
    assert f"  records.jsonl:1: missing image: {album / 'lost.png'}: No such file or directory\n" in named
    assert "records.jsonl:2: wrong image" in named
    assert "records.jsonl:3: wrong image" in named
    assert "records.jsonl:6: empty text: vqa" in named
    assert "records.jsonl:12: wrong JSON: a record is an object, not list" in named
    assert "records.jsonl:14: wrong JSON" in named


def test_many_bad_ones_are_named_in_part(tmp_path: Path) -> None:
    source = lines(tmp_path / "r.jsonl", *[{"caption": ""}] * 25, {"caption": "good"})
    said, _ = packed(source, tmp_path / "set")
    assert len(said) == 23
    assert said[21] == "  … and 5 more × empty text"


def test_folder_of_pictures(album: Path, tmp_path: Path) -> None:
    (album / "a.txt").write_text("一只鸟\n", "utf-8")
    (album / "sub" / "b.json").write_text('{"ocr": "STOP", "caption": {"en": "a sign"}}')
    (album / "cut.txt").write_text("cut")
    (album / "empty.png").write_bytes(picture(4))
    (album / "empty.txt").write_text(" \n")
    (album / "silent.webp").write_bytes(picture(5, "WEBP"))
    (album / "lonely.txt").write_text("the picture is lost")
    said, dataset = packed(album, tmp_path / "set", "--language", "zh")
    assert content(dataset) == [
        ({"caption": {"zh": "一只鸟"}}, [picture(1)]),
        ({"ocr": "STOP", "caption": {"en": "a sign"}}, [picture(2, "JPEG")]),
    ]
    assert dataset.name == "set"
    assert said[0] == "skipped 5 of 7: 1 × wrong image, 1 × empty text, 2 × missing text, 1 × missing image"
    assert "  silent.webp: missing text: neither silent.json nor silent.txt lies beside it" in said
    assert "  lonely.txt: missing image: there is no picture of the same name" in said


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def test_dialogues_of_llava(album: Path, tmp_path: Path) -> None:
    source = tmp_path / "llava.json"
    entries = [
        {"id": "1", "image": "a.png", "conversations": talk("<image>\nWhat is it?", "A dot.", "Sure?", "Yes <image>.")},
        {"image": ["a.png", "sub/b.jpg"], "conversations": talk("Here:<image>", "Well.", "<image>", "Another.")},
        {"image": "a.png", "conversations": talk("No mark.", "None.")},
        {"conversations": talk("Hello", "Good day")},
        {"image": "a.png", "conversations": talk("<image><image>two?", "One.")},
        {"image": "a.png", "conversations": talk("<image>", "")},
        {"image": "a.png", "conversations": talk("<image> and then")},
        {"image": "a.png", "conversations": [*reversed(talk("a", "b"))]},
        {"image": "a.png", "conversations": ["human: hi", "gpt: ho"]},
        {"image": "sub/c.jpg", "conversations": talk("<image>", "Lost.")},
    ]
    source.write_text(json.dumps(entries))
    said, dataset = packed(source, tmp_path / "set", "--images", str(album))

    def turn(role: str, text: str, *images: int) -> dict[str, Any]:
        return {"role": role, "text": {"en": text}, **({"images": list(images)} if images else {})}

    user, assistant = "user", "assistant"
    turns = [
        [turn(user, "What is it?", 0), turn(assistant, "A dot."), turn(user, "Sure?"), turn(assistant, "Yes <image>.")],
        [turn(user, "Here:", 0), turn(assistant, "Well."), turn(user, "", 1), turn(assistant, "Another.")],
        [turn(user, "No mark.", 0), turn(assistant, "None.")],
        [turn(user, "Hello"), turn(assistant, "Good day")],
    ]
    # Image number 0 is no empty list: the first turn shows it.
    assert [dataset.record(n).fields["dialogue"]["turns"] for n in range(len(dataset))] == turns
    assert [dataset.record(n).images for n in range(4)] == [1, 2, 1, 0]
    assert said[0] == "skipped 6 of 10: 4 × wrong dialogue, 1 × empty text, 1 × missing image"
    assert "  llava.json[4]: wrong dialogue: 2 times <image>, but images: 1" in said


def test_nothing_to_pack_is_refused(album: Path, tmp_path: Path) -> None:
    output = tmp_path / "set"
    bad = lines(tmp_path / "bad.jsonl", {"image": "lost.png", "caption": "a"}, {"caption": ""})
    assert "nothing in" in refusal(bad, output)
    assert "1 × missing image (bad.jsonl:1: missing image:" in refusal(bad, output)
    assert "skipped 2 of 2" in pack(bad, output).stdout
    (tmp_path / "empty.jsonl").write_text("\n\n")
    assert "it is empty" in refusal(tmp_path / "empty.jsonl", output)
    (tmp_path / "cut.json").write_text('[{"image": ')
    assert "cut.json is not a JSON list" in refusal(tmp_path / "cut.json", output)
    assert "nowhere.jsonl cannot be read: No such file" in refusal(tmp_path / "nowhere.jsonl", output)
    assert not output.exists()
    good = lines(album / "good.jsonl", {"image": "a.png", "caption": "a"})
    assert "exists and is not a dataset" in refusal(good, album)
    assert pack(good, output, "--language", "fr").exit_code == 2
    assert (album / "a.png").exists()
    packed(good, output)
    _, again = packed(good, output, "--name", "again")
    assert again.name == "again"
