"""Datasets: what was written comes back, from a folder and over HTTP, in any process; damage is told by name."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import tarfile
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from training.data.index import Index
from training.data.shards import Dataset
from training.data.writer import write_dataset
from training.errors import BadData, BadSample


def picture(number: int, kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (3, 2), (number % 256, 7, 9)).save(buffer, kind)
    return buffer.getvalue()


def samples(count: int) -> list[tuple[dict[str, Any], list[bytes]]]:
    """Sample n has n % 3 pictures."""
    kinds = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
    return [
        (
            {"caption": {"en": f"number {n}", "zh": f"第{n}号"}, "labels": {"concept": f"c{n % 4}"}},
            [picture(n + i, kinds[(n + i) % 5]) for i in range(n % 3)],
        )
        for n in range(count)
    ]


def write(folder: Path, count: int = 11, shard_samples: int = 4) -> Dataset:
    return write_dataset(folder, samples(count), name="things", shard_samples=shard_samples)


def content(dataset: Dataset) -> list[tuple[dict[str, Any], list[bytes]]]:
    records = [dataset.record(item) for item in range(len(dataset))]
    return [
        (dict(record.fields), [dataset.image(item, n) for n in range(record.images)])
        for item, record in enumerate(records)
    ]


def test_round_trip(tmp_path: Path) -> None:
    templates = {"caption": {"en": ["What is it?"], "zh": ["这是什么？", "图里有什么？"]}}
    written = write_dataset(tmp_path / "set", samples(11), name="things", shard_samples=4, templates=templates)
    dataset = Dataset.open(str(tmp_path / "set"))
    assert content(dataset) == samples(11)
    assert (dataset.name, len(dataset), dataset.shard_sizes, dataset.image_count) == ("things", 11, (4, 4, 3), 10)
    assert dataset.templates == {"caption": {"en": ("What is it?",), "zh": ("这是什么？", "图里有什么？")}}
    assert dataset.labels == {"concept": ("c0", "c1", "c2", "c3")}
    assert [dataset.first_image(n) for n in range(11)] == [0, 0, 1, 3, 3, 4, 6, 6, 7, 9, 9]
    assert dataset.record(9).key == "shard-00002:1"
    assert written.digest == dataset.digest == Dataset.open(f"file://{tmp_path}/set").digest


def test_shard_is_a_plain_tar_in_order(tmp_path: Path) -> None:
    write(tmp_path / "set")
    with tarfile.open(tmp_path / "set" / "shard-00001.tar") as tar:
        names = tar.getnames()
        # Samples 4 to 7 of the dataset, with 1, 2, 0 and 1 pictures.
        assert names == [
            "0000000.json",
            "0000000.0.bmp",
            "0000001.json",
            "0000001.0.png",
            "0000001.1.jpg",
            "0000002.json",
            "0000003.json",
            "0000003.0.webp",
        ]
        member = tar.extractfile("0000001.1.jpg")
        assert member is not None
        assert member.read() == samples(6)[5][1][1]
        assert all(entry.mtime == 0 and entry.uid == 0 for entry in tar)


def test_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write_dataset(tmp_path / "two", iter(samples(11)), name="things", shard_samples=4)
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    assert len(files) == 7
    assert write(tmp_path / "three", count=10).digest != Dataset.open(str(tmp_path / "one")).digest


def test_writer_replaces_datasets_only_and_leaves_nothing_half_made(tmp_path: Path) -> None:
    write(tmp_path / "set")

    def failing() -> Iterator[Any]:
        yield from samples(6)
        raise RuntimeError("the reader died")

    with pytest.raises(RuntimeError, match="the reader died"):
        write_dataset(tmp_path / "set", failing(), name="x")
    with pytest.raises(BadData, match="no samples"):
        write_dataset(tmp_path / "set", [], name="x")
    with pytest.raises(BadData, match=r"shard-00000:0: image 0 is not a PNG"):
        write_dataset(tmp_path / "set", [({"caption": "a"}, [b"no picture"])], name="x")
    with pytest.raises(BadData, match=r"shard-00000:0: the fields cannot be written"):
        write_dataset(tmp_path / "set", [({"caption": "\ud800"}, [])], name="x")
    with pytest.raises(BadData, match="labels must give a class name"):
        write_dataset(tmp_path / "set", [({"labels": {"concept": 3}}, [])], name="x")
    assert content(Dataset.open(str(tmp_path / "set"))) == samples(11)
    assert len(write(tmp_path / "set", count=2)) == 2
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    with pytest.raises(BadData, match="not a dataset"):
        write(tmp_path / "letters")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letters", "set"]


def _spoilt(folder: Path, old: bytes, new: bytes) -> Dataset:
    """The dataset with bytes of its only tar replaced by as many others."""
    tar = folder / "shard-00000.tar"
    data = tar.read_bytes()
    assert data.count(old) == 1
    assert len(old) == len(new)
    tar.write_bytes(data.replace(old, new))
    return Dataset.open(str(folder))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'{"caption": "bird"}', b'{"caption": "bird" ', "wrong JSON: Expecting"),
        (b'{"caption": "bird"}', b'["caption", "bird"]', "wrong JSON: a record is an object, not list"),
        (b"bird", b"b\xffrd", "wrong JSON: 'utf-8' codec"),
        (b"0000001.json", b"0000009.json", "missing member: no 0000001.json"),
    ],
)
def test_bad_record_is_named(tmp_path: Path, old: bytes, new: bytes, reason: str) -> None:
    write_dataset(tmp_path / "set", [({"caption": word}, []) for word in ("fish", "bird", "cow")], name="animals")
    dataset = _spoilt(tmp_path / "set", old, new)
    assert dataset.record(0).fields == {"caption": "fish"}
    with pytest.raises(BadSample, match=reason) as caught:
        dataset.record(1)
    assert caught.value.key == "shard-00000:1"
    assert dataset.record(2).fields == {"caption": "cow"}


def test_missing_images_and_items_are_named(tmp_path: Path) -> None:
    dataset = write(tmp_path / "set", count=3)
    for number in (2, -1):
        with pytest.raises(BadSample, match=rf"shard-00000:2: missing image: it has no image number {number}"):
            dataset.image(2, number)
    for item in (3, -1):
        with pytest.raises(IndexError, match="things has no item"):
            dataset.record(item)


def test_damaged_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"nowhere/index\.json cannot be read: No such file"):
        Dataset.open(str(tmp_path / "nowhere"))
    write(tmp_path / "set")
    index, tar = tmp_path / "set" / "index.json", tmp_path / "set" / "shard-00001.tar"
    members = tmp_path / "set" / "shard-00000.index.npz"
    members.write_bytes(members.read_bytes()[:-1] + b"?")
    with pytest.raises(BadData, match=r"shard-00000\.index\.npz is damaged: its SHA-256"):
        Dataset.open(str(tmp_path / "set")).record(0)
    os.truncate(tar, 1024)
    with pytest.raises(BadData, match=r"shard-00001\.tar is damaged: it has 1024 bytes"):
        Dataset.open(str(tmp_path / "set")).record(4)
    tar.unlink()
    with pytest.raises(BadData, match=r"shard-00001\.tar cannot be read"):
        Dataset.open(str(tmp_path / "set")).record(4)
    good = json.loads(index.read_bytes())
    changes: list[dict[str, Any]] = [{"format": "x"}, {"version": 2}, {"samples": 12}, {"images": None}, {"shards": []}]
    for change in changes:
        with pytest.raises(BadData, match=r"index\.json"):
            Index.from_bytes(json.dumps({**good, **change}).encode(), "index.json")
    evil = {**good, "shards": [{**good["shards"][0], "file": "../../etc/passwd"}]}
    for text in (b"{", b"[]", b"\xff", json.dumps(evil).encode()):
        with pytest.raises(BadData, match=r"index\.json is not the index of a dataset"):
            Index.from_bytes(text, "index.json")


class _Counting(SimpleHTTPRequestHandler):
    """Serves a folder and remembers what was asked for; shards are sent when `may_send` is set."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append(self.path.rsplit("/", 1)[-1])
        if self.path.endswith(".tar"):
            server.may_send.wait(30)
        if server.broken:
            self.send_error(server.broken.pop())
            return
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "site").mkdir()
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Counting, directory=str(tmp_path / "site")))
    server.asked, server.broken, server.may_send = [], [], threading.Event()
    server.may_send.set()
    server.url = f"http://127.0.0.1:{server.server_port}/set"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_stream_over_http_is_fetched_once(site: Any, tmp_path: Path) -> None:
    local = write(tmp_path / "site" / "set")
    dataset = Dataset.open(site.url, tmp_path / "cache")
    assert dataset.digest == local.digest
    assert site.asked == ["index.json"]
    assert dataset.record(5).fields == local.record(5).fields
    assert site.asked[1:] == ["shard-00001.index.npz", "shard-00001.tar"]
    assert content(dataset) == content(Dataset.open(site.url, tmp_path / "cache")) == samples(11)
    assert sorted(site.asked) == sorted(
        ["index.json"] * 2 + [f"shard-0000{n}.{kind}" for n in range(3) for kind in ("tar", "index.npz")]
    )
    cached = {path.name for path in (tmp_path / "cache").iterdir()}
    assert cached == {hashlib.sha256((tmp_path / "cache" / name).read_bytes()).hexdigest() for name in cached}


def test_those_who_want_the_same_shard_wait_for_one_download(site: Any, tmp_path: Path) -> None:
    write(tmp_path / "site" / "set")
    datasets = [Dataset.open(site.url, tmp_path / "cache") for _ in range(4)]
    site.may_send.clear()
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(dataset.record, 1) for dataset in datasets]
        site.may_send.set()
        assert [read.result().fields["caption"]["en"] for read in reads] == ["number 1"] * 4
    assert site.asked.count("shard-00000.tar") == 1
    assert len(list((tmp_path / "cache").iterdir())) == 2


def _read_all(dataset: Dataset) -> tuple[int, list[tuple[dict[str, Any], list[bytes]]]]:
    return os.getpid(), content(dataset)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_what_this_one_reads(site: Any, tmp_path: Path, method: str) -> None:
    local = write(tmp_path / "site" / "set")
    dataset = Dataset.open(site.url, tmp_path / "cache")
    dataset.record(0)
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        for one in (dataset, local):
            pid, found = pool.submit(_read_all, one).result(timeout=60)
            assert pid != os.getpid()
            assert found == samples(11)
    assert content(pickle.loads(pickle.dumps(dataset))) == samples(11)


def test_cache_forgets_what_was_used_longest_ago(site: Any, tmp_path: Path) -> None:
    write(tmp_path / "site" / "set")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "letter.txt").write_text("not the cache's own")
    (cache / f"{'0' * 64}.part").write_bytes(b"of a process that was killed")
    dataset = Dataset.open(site.url, cache, cache_bytes=25_000)
    assert content(dataset) == samples(11)
    sizes = {path.name: path.stat().st_size for path in cache.iterdir()}
    assert sizes.pop("letter.txt") > 0
    assert sum(sizes.values()) <= 25_000
    assert all(len(name) == 64 for name in sizes)
    last = dataset.index.shards[2]
    assert {last.tar.sha256, last.members.sha256} <= set(sizes)
    # A fresh process fetches again what is gone, and only that.
    site.asked.clear()
    assert content(Dataset.open(site.url, cache, cache_bytes=10**9)) == samples(11)
    assert "shard-00000.tar" in site.asked
    assert "shard-00002.tar" not in site.asked


def test_damaged_or_missing_shard_is_refused_and_not_kept(site: Any, tmp_path: Path) -> None:
    write(tmp_path / "site" / "set")
    first, second = (tmp_path / "site" / "set" / f"shard-0000{n}.tar" for n in (0, 1))
    first.write_bytes(first.read_bytes().replace(b"number 1", b"nimber 1"))
    os.truncate(second, 2048)
    (tmp_path / "site" / "set" / "shard-00002.tar").unlink()
    dataset = Dataset.open(site.url, tmp_path / "cache")
    for item, words in ((1, r"shard-00000\.tar is damaged: its SHA"), (4, r"shard-00001\.tar is damaged: it has 2048")):
        with pytest.raises(BadData, match=words):
            dataset.record(item)
    with pytest.raises(BadData, match=r"http://.*shard-00002\.tar cannot be read"):
        dataset.record(9)
    with pytest.raises(BadData, match=r"http://.*/empty/index\.json cannot be read"):
        Dataset.open(site.url.replace("/set", "/empty"), tmp_path / "cache")
    whole = {path.name for path in (tmp_path / "cache").iterdir()}
    assert whole == {shard.members.sha256 for shard in dataset.index.shards}


def test_trouble_on_the_way_is_tried_again(site: Any, tmp_path: Path) -> None:
    write(tmp_path / "site" / "set")
    site.broken[:] = [503, 429]
    assert len(Dataset.open(site.url, tmp_path / "cache")) == 11
    site.broken[:] = [403]
    with pytest.raises(BadData, match="status 403"):
        Dataset.open(site.url, tmp_path / "cache")
    assert site.asked == ["index.json"] * 4


def test_any_fsspec_url(tmp_path: Path) -> None:
    write(tmp_path / "set")
    url = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(f"{tmp_path}/set", url, recursive=True)
    assert content(Dataset.open(url, tmp_path / "cache")) == samples(11)
    with pytest.raises(BadData, match="pigeon://post cannot be opened"):
        Dataset.open("pigeon://post")
