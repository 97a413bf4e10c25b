"""Cached features: the encoder's own numbers, built once, gone on with after a stop, refused when they are others."""

import io
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel

from tests.tiny import vision_config
from training.data.augment import Drawing
from training.data.pixels import PixelSource
from training.data.writer import write_dataset
from training.errors import BadData, BadSample, FeatureMismatch, NonFinite
from training.feature_build import FeatureBuild
from training.features import FeatureCache, FeatureKey, view_of
from training.recipe import Images
from ziya.model.preprocessing import Preprocessing

SIZE = 32


def picture(number: int) -> bytes:
    rgba = np.random.default_rng(number).integers(0, 256, (20 + number, 30, 4), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Memory:
    """A dataset in memory: files by shard, item and number. None is a picture whose bytes cannot be read."""

    shards: Sequence[Sequence[Sequence[bytes | None]]]
    name: str = "birds"
    digest: str = "0123"

    @property
    def items(self) -> list[Sequence[bytes | None]]:
        return [item for shard in self.shards for item in shard]

    @property
    def image_count(self) -> int:
        return sum(map(len, self.items))

    @property
    def shard_sizes(self) -> Sequence[int]:
        return [len(shard) for shard in self.shards]

    def __len__(self) -> int:
        return len(self.items)

    def key(self, item: int) -> str:
        return f"memory:{item}"

    def image(self, item: int, number: int) -> bytes:
        data = self.items[item][number]
        if data is None:
            raise BadSample(self.key(item), "missing member: it is cut off")
        return data

    def first_image(self, item: int) -> int:
        return (0, *accumulate(map(len, self.items)))[item]


# Items of one, two and no images; a shard without any; twelve images in all.
BIRDS = Memory(
    [
        [[picture(0)], [picture(1), picture(2)], [], [picture(3)]],
        [[], []],
        [[picture(4)], [picture(5)], [picture(6), picture(7), picture(8)]],
        [[picture(9)], [picture(10)], [picture(11)]],
    ]
)


class Encoder:
    """A small ViT that counts the pictures it has seen."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.vision = Blip2VisionModel(vision_config()).eval()
        self.seen = 0

    def __call__(self, pixels_I3SS: Tensor) -> Tensor:
        self.seen += len(pixels_I3SS)
        features_IND: Tensor = self.vision(pixel_values=pixels_I3SS).last_hidden_state
        return features_IND


def pixels(augment: str = "drawing", seed: int = 1, drawing: Drawing | None = None) -> PixelSource:
    return PixelSource(Preprocessing(SIZE), Images(augment=augment), seed, drawing=drawing)


def key(dataset: Any = BIRDS, source: PixelSource | None = None, **changes: Any) -> FeatureKey:
    return FeatureKey(dataset.digest, "vit", None, (source or pixels()).description(), **{"views": 3, **changes})


def build(folder: Path, encode: Callable[[Tensor], Tensor], *, dataset: Any = BIRDS, batch: int = 6) -> FeatureBuild:
    return FeatureBuild(folder, key(dataset), dataset, pixels(), encode, batch)


def expected(encode: Encoder, dataset: Any = BIRDS, views: int = 3) -> Tensor:
    """[I, V, N, D], computed one picture at a time from a view each."""
    files = [dataset.image(item, number) for item, images in enumerate(dataset.items) for number in range(len(images))]
    with torch.inference_mode():
        return torch.stack(
            [
                torch.cat([encode(pixels().views([("", data)], [image], [view])[0]) for view in range(views)])
                for image, data in enumerate(files)
            ]
        )


def test_what_is_read_is_what_the_encoder_says_of_each_view(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    encoder = Encoder()
    # One picture a call, so that the same sums are taken in the same order.
    replace(build(tmp_path / "new", encoder, batch=1), key=key(views=1)).run(progress=lambda *at: told.append(at))
    cache = FeatureCache.open(tmp_path / "new", key(views=1))
    direct = expected(Encoder(), views=1)
    assert (len(cache), cache.shape, encoder.seen) == (12, (17, 32), 12)
    for image in range(12):
        assert cache.valid(image)
        assert np.array_equal(cache.read(image, 0), direct[image, 0].numpy())
    order = [11, 0, 5, 5, 3]
    assert torch.equal(cache.batch(order, [0] * 5), direct[order, 0])
    assert told == [(done, 12) for done in range(13)]
    cache.verify()


def test_every_view_is_kept_beside_the_others(tmp_path: Path) -> None:
    build(tmp_path, Encoder()).run()
    cache, direct = FeatureCache.open(tmp_path, key()), expected(Encoder())
    images, views = np.divmod(np.arange(36), 3)
    assert torch.allclose(cache.batch(images.tolist(), views.tolist()), direct.flatten(0, 1), atol=1e-5)
    assert not np.allclose(cache.read(4, 0), cache.read(4, 1), atol=1e-2)
    with pytest.raises(IndexError, match="no view 3 of image 4"):
        cache.read(4, 3)
    with pytest.raises(IndexError, match="no view 0 of image 12"):
        cache.read(12, 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_the_rounded_value(tmp_path: Path, dtype: Any) -> None:
    build(tmp_path / "whole", Encoder()).run()
    replace(build(tmp_path / "half", Encoder()), key=key(dtype=dtype)).run()
    whole, half = FeatureCache.open(tmp_path / "whole", key()), FeatureCache.open(tmp_path / "half", key(dtype=dtype))
    rounded = whole.batch([3, 9], [0, 2]).to(getattr(torch, dtype))
    assert torch.equal(half.batch([3, 9], [0, 2]), rounded)
    assert np.array_equal(half.read(9, 2), rounded[1].float().numpy())
    assert half.blank().dtype == rounded.dtype
    size = {path.name: path.stat().st_size for path in (tmp_path / "half").glob("*.npy")}
    assert size["shard-00003.npy"] == 128 + 3 * 3 * 17 * 32 * 2


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_interrupted_build_goes_on_with_the_missing_shards(tmp_path: Path) -> None:
    build(tmp_path / "whole", Encoder()).run()

    class Killed(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > 9:
            raise Killed

    with pytest.raises(Killed):
        build(tmp_path / "cut", Encoder()).run(progress=stop)
    (tmp_path / "cut/.shard-00003.npy.0123456789ab").write_bytes(b"left by a process that was killed")
    with pytest.raises(BadData, match=r"not complete: of 4 shards missing: 3$"):
        FeatureCache.open(tmp_path / "cut", key())
    encoder, told = Encoder(), list[tuple[int, int]]()
    build(tmp_path / "cut", encoder).run(progress=lambda *at: told.append(at))
    assert encoder.seen == 9
    assert told == [(9, 12), (11, 12), (12, 12)]
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    again = Encoder()
    build(tmp_path / "cut", again).run()
    assert again.seen == 0


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_share_a_build_and_the_result_is_the_same(tmp_path: Path, world: int) -> None:
    build(tmp_path / "whole", Encoder()).run()
    encoders = [Encoder() for _ in range(world)]
    for rank in reversed(range(world)):
        with pytest.raises(BadData, match="missing"):
            FeatureCache.open(tmp_path / "shared", key())
        build(tmp_path / "shared", encoders[rank]).run(rank=rank, world=world)
    assert sum(encoder.seen for encoder in encoders) == 36
    assert files(tmp_path / "shared") == files(tmp_path / "whole")
    FeatureCache.open(tmp_path / "shared", key()).verify()


def test_bad_pictures_are_noted_and_nothing_stops(tmp_path: Path) -> None:
    dataset = Memory([[[picture(0)], [picture(1)[:400]]], [[None], [b"no picture"], [picture(4)]]])
    build(tmp_path, Encoder(), dataset=dataset).run()
    cache = FeatureCache.open(tmp_path, key(dataset))
    assert [cache.valid(image) for image in range(5)] == [True, False, False, False, True]
    assert cache.bad == {
        1: "bad image: the image is damaged or cut off: PNG data cannot be decoded",
        2: "missing member: it is cut off",
        3: "bad image: the image is not a PNG, JPEG, WebP, GIF or BMP file",
    }
    assert not cache.batch([1, 2, 3], [0, 1, 2]).any()
    assert torch.equal(cache.blank(), cache.batch([1], [0]))
    assert cache.batch([0, 4], [0, 0]).flatten(1).any(1).all()


OTHERS = {
    "dataset": (key(replace(BIRDS, digest="4567")), "dataset is '0123' there, '4567' is wanted"),
    "vision": (replace(key(), vision="vit2"), "vision is 'vit' there, 'vit2' is wanted"),
    "qformer": (replace(key(), qformer="qf"), "qformer is None there, 'qf' is wanted"),
    "views": (key(views=4), "views is 3 there, 4 is wanted"),
    "dtype": (key(dtype="float16"), "dtype is 'float32' there, 'float16' is wanted"),
    "seed": (key(source=pixels(seed=2)), "pixels.seed is 1 there, 2 is wanted"),
    "strength": (key(source=pixels(drawing=Drawing(noise=0.1))), "pixels.strengths.noise is 0.03 there, 0.1 is wanted"),
    "augment": (key(source=pixels("crop")), "pixels.augment is 'drawing' there, 'crop' is wanted"),
    "size": (
        key(source=PixelSource(Preprocessing(48), Images(augment="drawing"), 1)),
        "pixels.preprocessing.size.height is 32 there, 48 is wanted; pixels.preprocessing.size.width is 32 there, 48",
    ),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    build(folder, Encoder()).run()
    return folder


@pytest.mark.parametrize("other", OTHERS)
def test_other_features_are_refused_and_what_differs_is_named(built: Path, other: str) -> None:
    wanted, message = OTHERS[other]
    assert wanted.name != key().name
    with pytest.raises(FeatureMismatch) as refused:
        FeatureCache.open(built, wanted)
    assert message in str(refused.value)
    if other in {"vision", "qformer", "views", "dtype"}:
        before = files(built)
        with pytest.raises(FeatureMismatch, match=other):
            replace(build(built, Encoder()), key=wanted).run()
        assert files(built) == before
        # Nothing else is named.
        assert str(refused.value).count(" is wanted") == 1


def test_a_key_that_is_not_of_what_is_encoded_is_refused(tmp_path: Path) -> None:
    for wrong in (key(replace(BIRDS, digest="4567")), key(source=pixels(seed=2))):
        with pytest.raises(FeatureMismatch, match="the key is not of birds and these pixels"):
            replace(build(tmp_path / "new", Encoder()), key=wrong).run()
    assert not (tmp_path / "new").exists()


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"has no features: key\.json is missing"):
        FeatureCache.open(tmp_path, key())
    build(tmp_path, Encoder()).run()
    cache = FeatureCache.open(tmp_path, key())
    path = tmp_path / "shard-00002.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BadData, match=r"shard-00002\.npy is damaged: its SHA-256 is not the manifest's"):
        cache.verify()
    path.write_bytes(content[:-1])
    with pytest.raises(BadData, match=r"shards missing: 2$"):
        FeatureCache.open(tmp_path, key())
    encoder = Encoder()
    build(tmp_path, encoder).run()
    assert (encoder.seen, path.read_bytes()) == (15, content)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(BadData, match=r"not complete: manifest\.json is missing"):
        FeatureCache.open(tmp_path, key())
    (tmp_path / "key.json").write_text("[]")
    with pytest.raises(BadData, match=r"key\.json is damaged"):
        FeatureCache.open(tmp_path, key())


def test_features_that_are_not_finite_stop_the_build(tmp_path: Path) -> None:
    def large(pixels_I3SS: Tensor) -> Tensor:
        return pixels_I3SS.flatten(2) * 0 + 70_000

    build(tmp_path / "whole", large).run()
    with pytest.raises(NonFinite, match="birds: the features of image 0 are not finite in float16"):
        replace(build(tmp_path / "half", large), key=key(dtype="float16")).run()
    assert not list((tmp_path / "half").glob("*shard*"))
    with pytest.raises(ValueError, match=r"encode gave \(6, 1024\) for 6 pictures"):
        build(tmp_path / "flat", lambda pixels_I3SS: pixels_I3SS[:, 0].flatten(1)).run()
    with pytest.raises(BadData, match="birds has no images"):
        build(tmp_path / "none", large, dataset=Memory([[[]]])).run()


def test_a_cache_can_be_handed_to_a_worker(built: Path) -> None:
    cache = FeatureCache.open(built, key())
    row = cache.read(7, 1)
    sent = pickle.dumps(cache)
    assert len(sent) < 5000
    assert np.array_equal(pickle.loads(sent).read(7, 1), row)


def test_the_manifest_says_what_the_cache_is(built: Path) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    assert manifest["key"]["pixels"]["preprocessing"]["image_processor_type"] == "BlipImageProcessor"
    assert [one["images"] for one in manifest["files"]] == [4, 0, 5, 3]
    assert [one["shape"] for one in manifest["files"]] == [[17, 32], [], [17, 32], [17, 32]]
    assert np.load(built / "shard-00003.npy").shape == (9, 17, 32)


@pytest.mark.parametrize("views", [1, 2, 3, 8])
def test_epochs_go_through_all_views_and_images_differ(views: int) -> None:
    for image in (0, 1, 17, 10**9):
        seen = [view_of(epoch, image, views) for epoch in range(2 * views)]
        assert sorted(seen[:views]) == list(range(views))
        assert seen[views:] == seen[:views]
    counts = np.bincount([view_of(0, image, views) for image in range(1000)], minlength=views)
    assert counts.min() > 0.8 * 1000 / views


def test_a_packed_dataset_is_what_a_build_needs(tmp_path: Path) -> None:
    samples = [({"caption": f"bird {number}"}, [picture(number)] * (number % 3)) for number in range(8)]
    dataset = write_dataset(tmp_path / "data", samples, name="birds", shard_samples=3)
    build(tmp_path / "cache", Encoder(), dataset=dataset).run()
    cache, encoder = FeatureCache.open(tmp_path / "cache", key(dataset)), Encoder()
    assert len(cache) == dataset.image_count == 7
    for item in range(len(dataset)):
        for number in range(dataset.record(item).images):
            image = dataset.first_image(item) + number
            named = [(dataset.key(item), dataset.image(item, number))]
            with torch.inference_mode():
                direct = encoder(pixels().views(named, [image], [2])[0])
            assert torch.allclose(cache.batch([image], [2]), direct, atol=1e-5)
