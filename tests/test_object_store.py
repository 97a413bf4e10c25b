"""Datasets in an object store: the real S3 client against a server that speaks S3, on a real socket."""

from __future__ import annotations

import multiprocessing
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
from s3fs import S3FileSystem

from tests.test_shards import content, samples, write
from training.data.shards import Dataset
from training.errors import BadData, TrainingError


def serve(pipe: Any) -> None:
    """The store, in a process of its own: whoever forks must not copy its threads."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    pipe.send(server.get_host_and_port()[1])
    pipe.recv()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket; the client finds its way by the environment, as everywhere."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    server = spawn.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{ours.recv()}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        S3FileSystem.clear_instance_cache()
        bucket = f"bucket-{uuid.uuid4().hex}"
        fsspec.filesystem("s3").mkdir(bucket)
        yield f"s3://{bucket}"
    finally:
        server.kill()
        server.join()
        S3FileSystem.clear_instance_cache()


def upload(folder: Path, url: str) -> None:
    fsspec.filesystem("s3").put(f"{folder}/", f"{url}/", recursive=True)


def read_all(url: str, cache: Path) -> object:
    return content(Dataset.open(url, cache))


def read_here_and_in_a_child(url: str, folder: Path, method: str) -> tuple[str, object, object]:
    """The digest, and the samples as the child and as this process reads them."""
    dataset = Dataset.open(url, folder / "cache")
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        theirs = pool.submit(read_all, url, folder / "other").result(timeout=60)
    return dataset.digest, theirs, content(dataset)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_streamed_from_an_object_store_in_any_process(store: str, tmp_path: Path, method: str) -> None:
    local = write(tmp_path / "set")
    upload(tmp_path / "set", f"{store}/set")
    # In a process of its own: this one has threads of other tests, whose locks a fork would copy.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        done = pool.submit(read_here_and_in_a_child, f"{store}/set", tmp_path, method).result(timeout=100)
    assert done == (local.digest, samples(11), samples(11))


def test_what_is_missing_or_damaged_is_named(store: str, tmp_path: Path) -> None:
    write(tmp_path / "set")
    (tmp_path / "set" / "shard-00001.tar").unlink()
    (tmp_path / "set" / "shard-00002.tar").write_bytes(b"cut short")
    upload(tmp_path / "set", f"{store}/set")
    dataset = Dataset.open(f"{store}/set", tmp_path / "cache")
    assert dataset.record(0).fields == samples(1)[0][0]
    for item, words in ((4, r"/set/shard-00001\.tar cannot be read"), (9, r"shard-00002\.tar is damaged: it has 9")):
        with pytest.raises(BadData, match=words):
            dataset.record(item)
    with pytest.raises(BadData, match=r"s3://.*/none/index\.json cannot be read"):
        Dataset.open(f"{store}/none", tmp_path / "cache")


def test_no_credentials_and_no_server_are_told_apart(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(TrainingError, match=r"index\.json cannot be fetched: Could not connect"):
        Dataset.open(f"{store}/set")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(BadData, match=r"index\.json cannot be read: Unable to locate credentials"):
        Dataset.open(f"{store}/set")
