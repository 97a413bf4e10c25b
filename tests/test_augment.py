"""Pixels for training: serving's without augmentation, and changed at random by nothing but the sample itself."""

import io
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from training.data.augment import CROP_RATIO, CROP_SHARE, Drawing, crop, drawings, stream
from training.data.pixels import PixelSource
from training.errors import BadConfig
from training.recipe import Images
from ziya.images import ImageLimits, decode
from ziya.model.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing

SIZE = 24
PLAIN = Drawing(**dict.fromkeys(Drawing.__dataclass_fields__, 0.0) | {"white_background": 1.0})
ORIENTATION = 0x0112


def source(augment: str, *, seed: int = 1, drawing: Drawing | None = None, keep_bytes: int = 1 << 20) -> PixelSource:
    return PixelSource(Preprocessing(SIZE), Images(augment=augment), seed, drawing=drawing, keep_bytes=keep_bytes)


def art(number: int, width: int = 40, height: int = 32) -> Image.Image:
    """A coloured disc with a half-transparent bar on nothing."""
    picture = Image.new("RGBA", (width, height))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((4, 4, width - 6, height - 4), fill=(40 * number % 256, 90, 250 - 30 * number % 250, 255))
    pen.rectangle((0, height // 2, width, height // 2 + 5), fill=(250, 200, 10 * number % 256, 128))
    return picture


def file(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pictures() -> list[tuple[str, bytes]]:
    """Eleven pictures of all formats, with and without transparency, of several sizes."""
    made = [file(art(number, 30 + 3 * number, 50 - 2 * number)) for number in range(7)]
    made += [file(art(7), "WEBP", lossless=True), file(art(8).convert("P"), "GIF")]
    made += [file(art(9).convert("RGB"), "JPEG"), file(art(10).convert("L"), "BMP")]
    return [(f"shard-00000:{number}", data) for number, data in enumerate(made)]


def test_without_augmentation_pixels_are_those_of_serving_bit_for_bit(pictures: list[tuple[str, bytes]]) -> None:
    served = [Preprocessing(SIZE)(decode(data, ImageLimits())) for _, data in pictures]
    pixels = source("none")
    for _ in range(2):  # decoded, then from memory
        made, bad = pixels.pixels(pictures, range(len(pictures)))
        assert made.dtype == torch.float32
        assert np.array_equal(made.numpy(), np.stack(served))
        assert bad == [None] * len(pictures)


@pytest.mark.parametrize("augment", ["none", "crop", "drawing"])
def test_a_sample_is_the_same_bit_for_bit_in_any_batch(augment: str, pictures: list[tuple[str, bytes]]) -> None:
    positions = [1000 + 7 * number for number in range(len(pictures))]
    whole, _ = source(augment).pixels(pictures, positions)
    # More than one chunk, odd sizes, singles, another order, another source, without memory.
    many, _ = source(augment).pixels(pictures * 4, positions * 4)
    assert torch.equal(many, whole.repeat(4, 1, 1, 1))
    for size in (1, 2, 3, 5, 7):
        pixels = source(augment, keep_bytes=0)
        parts = [
            pixels.pixels(pictures[start : start + size], positions[start : start + size])[0]
            for start in range(0, len(pictures), size)
        ]
        assert torch.equal(torch.cat(parts), whole)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled, _ = source(augment).pixels([pictures[one] for one in order], [positions[one] for one in order])
    assert torch.equal(shuffled, whole[order])


def test_a_sample_is_the_same_bit_for_bit_in_another_process_and_on_other_threads() -> None:
    program = (
        "import sys, torch; torch.set_num_threads(2)\n"
        "from training.data.augment import Drawing, drawings, stream\n"
        "art = (torch.arange(20 * 4 * 32 * 32) * 7919 % 256).to(torch.uint8).view(20, 4, 32, 32)\n"
        "made = drawings(art, [stream(3, 'sample', one) for one in range(20)], 24, Drawing())\n"
        "sys.stdout.buffer.write(made.numpy().tobytes())\n"
    )
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    art_I4HW = (torch.arange(20 * 4 * 32 * 32) * 7919 % 256).to(torch.uint8).view(20, 4, 32, 32)
    alone = [
        drawings(art_I4HW[one : one + 1], [stream(3, "sample", one)], 24, Drawing()).numpy().tobytes()
        for one in range(20)
    ]
    assert made == b"".join(alone)


@pytest.mark.parametrize("augment", ["crop", "drawing"])
def test_positions_seeds_and_views_give_other_pixels(augment: str) -> None:
    one = [("a", file(art(0, 300, 260)))]
    made = [source(augment).pixels(one, [position])[0] for position in range(20)]
    made += [source(augment, seed=2).pixels(one, [position])[0] for position in range(20)]
    made += [source(augment).views(one, [0], [view])[0] for view in range(20)]
    assert all(torch.isfinite(pixels).all() and pixels.shape == (1, 3, SIZE, SIZE) for pixels in made)
    assert len({pixels.numpy().tobytes() for pixels in made}) == 60
    again = source(augment).views(one, [0], [19])[0]
    assert torch.equal(again, made[-1])


def test_streams_are_their_own() -> None:
    asked = [
        (seed, purpose, number) for seed in (0, 1) for purpose in ("sample", "view") for number in (0, 1, -1, 2**70)
    ]
    drawn = {stream(seed, purpose, number).random() for seed, purpose, number in asked}
    assert len(drawn) == len(asked)
    assert stream(5, "view", 1, 12).random() != stream(5, "view", 11, 2).random()


@pytest.mark.parametrize(("height", "width"), [(60, 80), (200, 200), (9, 7)])
def test_a_crop_is_half_to_all_of_the_picture(height: int, width: int) -> None:
    image = np.arange(height * width, dtype=np.int64).reshape(height, width)
    mirrored, shares, ratios, lefts = 0, [], [], set()
    for number in range(400):
        # Every pixel is its own number: where the part lies can be read off.
        part = crop(
            np.stack([image % 256, image // 256 % 256, image // 65536], -1).astype(np.uint8), stream(1, "s", number)
        )
        numbers = part.astype(np.int64) @ [1, 256, 65536]
        flipped = part.shape[1] > 1 and numbers[0, 0] > numbers[0, 1]
        numbers = numbers[:, ::-1] if flipped else numbers
        top, left = divmod(int(numbers[0, 0]), width)
        assert np.array_equal(numbers, image[top : top + part.shape[0], left : left + part.shape[1]])
        mirrored += flipped
        shares.append(numbers.size / image.size)
        ratios.append(part.shape[1] / part.shape[0])
        lefts.add(left)
    slack = 1.3 if height < 10 else 1.04  # sides are whole pixels
    assert CROP_SHARE[0] / slack <= min(shares) < 0.6
    assert 0.9 < max(shares) <= CROP_SHARE[1]
    assert CROP_RATIO[0] / slack <= min(ratios)
    assert max(ratios) <= CROP_RATIO[1] * slack
    assert 150 < mirrored < 250
    assert 0 in lefts
    assert len(lefts) > 2


@pytest.mark.parametrize(("height", "width", "expected"), [(10, 400, (10, 13)), (400, 10, (13, 10)), (1, 1, (1, 1))])
def test_a_picture_of_another_ratio_gives_its_middle(height: int, width: int, expected: tuple[int, int]) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    image[height // 2, width // 2] = 255
    part = crop(image, stream(1, "sample", 0))
    assert part.shape[:2] == expected
    assert part.max() == 255


def test_a_crop_is_preprocessed_as_in_serving(pictures: list[tuple[str, bytes]]) -> None:
    made, _ = source("crop").pixels(pictures, range(len(pictures)))
    for number, (_, data) in enumerate(pictures):
        part = crop(decode(data, ImageLimits()), stream(1, "sample", number))
        assert np.array_equal(made[number].numpy(), Preprocessing(SIZE)(np.ascontiguousarray(part)))


def test_a_drawing_changed_by_nothing_is_the_drawing_over_white() -> None:
    # Transparent at the edge, so that it does not matter what lies outside; smooth, so that scaling changes little.
    far = np.hypot(*np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64)))
    alpha = (np.clip(1 - far, 0, 1) * 255).astype(np.uint8)
    rgba = np.dstack([np.full((64, 64), 200, np.uint8), np.full((64, 64), 60, np.uint8), alpha // 2, alpha])
    data = file(Image.fromarray(rgba))
    served, _ = source("none").pixels([("a", data)], [0])
    made, _ = source("drawing", drawing=PLAIN).pixels([("a", data)], [0])
    assert (made - served).abs().max() < 0.06  # of a range of about four


def test_each_strength_of_a_drawing_changes_it() -> None:
    picture = [("a", file(art(3)))]
    plain, _ = source("drawing", drawing=PLAIN).pixels(picture, [0])
    for name in set(Drawing.__dataclass_fields__) - {"white_background"}:
        strength = 12.0 if name.endswith("degrees") else 1.0 if name in {"erase", "grayscale"} else 0.2
        changed = Drawing(**(vars(PLAIN) | {name: strength}))
        made, _ = source("drawing", drawing=changed).pixels(picture, [0])
        assert not torch.equal(made, plain), name
    coloured, _ = source("drawing", drawing=Drawing(**(vars(PLAIN) | {"white_background": 0.0}))).pixels(picture, [0])
    corner, white = coloured[0, :, 0, 0], plain[0, :, 0, 0]
    assert torch.allclose(white, (1 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD))
    assert (corner != white).all()


def test_hue_turns_about_grey_and_saturation_keeps_luma() -> None:
    """One opaque colour everywhere: what the colour map gives is worked out here by Rodrigues' formula."""
    colour = np.array([0.4, 0.6, 0.2])
    flat = torch.full((1, 4, 8, 8), 255, dtype=torch.uint8)
    flat[0, :3] = torch.tensor(colour * 255).to(torch.uint8)[:, None, None]
    luma = float(np.dot(colour, (0.299, 0.587, 0.114)))
    axis = np.ones(3) / math.sqrt(3)
    how = Drawing(**(vars(PLAIN) | {"hue_degrees": 14.0, "saturation": 0.45}))
    seen = []
    for number in range(50):
        made = drawings(flat, [stream(1, "sample", number)], 8, how)[0, :, 4, 4].double().numpy()
        chroma, start = made - luma, colour - luma
        along = np.dot(start, axis)
        # The part of the chroma that is at right angles to the grey axis is turned and scaled, the rest only scaled.
        scale = np.dot(chroma, axis) / along
        across = start - along * axis
        turned = (chroma - scale * along * axis) / scale
        angle = math.degrees(math.atan2(np.dot(np.cross(across, turned), axis), np.dot(across, turned)))
        expected = across * math.cos(math.radians(angle)) + np.cross(axis, across) * math.sin(math.radians(angle))
        assert np.allclose(turned, expected, atol=1e-3)
        assert 0.55 - 1e-3 <= scale <= 1.45 + 1e-3
        assert abs(angle) <= 14.0 + 0.1
        seen.append((angle, scale))
    assert max(angle for angle, _ in seen) > 7
    assert min(angle for angle, _ in seen) < -7


def test_transparency_is_kept_whatever_the_orientation() -> None:
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    lying, upright = art(2, 48, 32), art(2, 48, 32).transpose(Image.Transpose.ROTATE_270)
    pixels = source("drawing", drawing=PLAIN)
    made, _ = pixels.pixels([("a", file(lying, exif=turned)), ("b", file(upright))], [0, 0])
    assert torch.equal(made[0], made[1])
    broken, bad = pixels.pixels([("a", file(lying, exif=b"Exif\0\0nonsense")), ("b", file(lying))], [0, 0])
    assert bad == [None, None]
    assert torch.equal(broken[0], broken[1])


def test_pictures_without_transparency_can_be_drawings(pictures: list[tuple[str, bytes]]) -> None:
    deep = Image.fromarray(np.linspace(0, 65535, 900).reshape(30, 30).astype(np.uint16))
    made, bad = source("drawing").pixels([*pictures, ("deep", file(deep))], range(len(pictures) + 1))
    assert bad == [None] * (len(pictures) + 1)
    assert torch.isfinite(made).all()
    # Preprocessing's own range of values.
    low, high = ((value - max(CLIP_MEAN)) / min(CLIP_STD) - 0.5 for value in (0, 1.2))
    assert low < made.min()
    assert made.max() < high


@pytest.mark.parametrize("augment", ["none", "crop", "drawing"])
def test_a_bad_picture_is_named_and_its_place_stays(augment: str, pictures: list[tuple[str, bytes]]) -> None:
    good = file(art(1))
    cut = [("s:0", good[: len(good) // 2]), ("s:1", good), ("s:2", b""), ("s:3", b"<svg/>"), ("s:4", good[:20])]
    made, bad = source(augment).pixels(cut, [3, 4, 5, 6, 7])
    alone, _ = source(augment).pixels(cut[1:2], [4])
    assert torch.equal(made[1:2], alone)
    assert [str(one) if one else None for one in bad] == [
        "s:0: bad image: the image is damaged or cut off: PNG data cannot be decoded",
        None,
        "s:2: bad image: the image is empty",
        "s:3: bad image: the image is not a PNG, JPEG, WebP, GIF or BMP file",
        "s:4: bad image: the image is damaged or cut off: its PNG header cannot be read",
    ]
    assert not made[[0, 2, 3, 4]].any()
    nothing, none = source(augment).pixels(cut[:1], [0])
    assert (nothing.shape, nothing.any().item(), len(none)) == ((1, 3, SIZE, SIZE), False, 1)
    assert source(augment).pixels([], [])[0].shape == (0, 3, SIZE, SIZE)


def test_what_is_too_large_is_refused_as_in_serving() -> None:
    pixels = PixelSource(Preprocessing(SIZE), Images(augment="drawing"), 1, limits=ImageLimits(max_side=39))
    (reason,) = pixels.pixels([("a", file(art(1)))], [0])[1]
    assert reason is not None
    assert reason.reason == "bad image: the image is 40 × 32; at most 39 pixels a side are accepted"


def test_an_unknown_augmentation_is_refused() -> None:
    with pytest.raises(BadConfig, match=r"images\.augment must be none, crop or drawing, not 'mirror'"):
        source("mirror")


def test_the_description_says_all_that_decides_the_pixels() -> None:
    told = [source("none"), source("none", seed=2), source("crop"), source("crop", seed=2), source("drawing")]
    told += [source("drawing", drawing=Drawing(noise=0.1))]
    texts = [repr(one.description()) for one in told]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 5
