"""Content keys: equal for equal content, and different whenever anything that matters differs."""

from __future__ import annotations

import hashlib
import itertools

from ziya.keys import features_key, image_id, tokens_key

A, B = "a" * 64, "b" * 64


def features(image: str = A, vision: str = A, dtype: str = "float16", salt: str = "") -> str:
    return features_key(image, vision_fingerprint=vision, dtype=dtype, salt=salt)


def tokens(key: str = "ziya:features:x", qformer: str = A, ids: list[int] | None = None) -> str:
    return tokens_key(key, qformer_fingerprint=qformer, instruction_ids=ids)


def assert_all_different(keys: list[str]) -> None:
    for one, other in itertools.combinations(keys, 2):
        assert one != other


def test_an_image_is_its_bytes() -> None:
    assert image_id(b"png") == hashlib.sha256(b"png").hexdigest()
    assert image_id(b"png") != image_id(b"png\0")


def test_equal_content_has_equal_keys() -> None:
    assert features() == features()
    assert tokens(ids=[1, 2]) == tokens(ids=[1, 2])


def test_keys_are_256_bits_and_name_their_kind() -> None:
    for prefix, key in (("ziya:features:", features()), ("ziya:tokens:", tokens())):
        assert key.startswith(prefix)
        assert len(bytes.fromhex(key.removeprefix(prefix))) == 32


def test_image_weights_dtype_and_salt_each_change_the_features_key() -> None:
    assert_all_different(
        [
            features(),
            features(image=B),
            features(vision=B),
            features(dtype="float32"),
            features(salt="tenant 1"),
            features(salt="tenant 2"),
        ]
    )


def test_features_weights_and_instruction_each_change_the_tokens_key() -> None:
    assert_all_different(
        [
            tokens(),
            tokens(key=features(salt="tenant 1")),
            tokens(key=features(salt="tenant 2")),
            tokens(qformer=B),
            tokens(ids=[]),
            tokens(ids=[1, 23]),
            tokens(ids=[12, 3]),
            tokens(ids=[123]),
            tokens(ids=[0]),
        ]
    )


def test_parts_cannot_be_shifted_into_one_another() -> None:
    assert_all_different(
        [
            features(dtype="float16", salt="x"),
            features(dtype="float16x", salt=""),
            features(dtype="float1", salt="6x"),
        ]
    )
    assert features(image="ab", vision="c") != features(image="a", vision="bc")


def test_a_features_key_is_never_a_tokens_key() -> None:
    same = features_key("x", vision_fingerprint="y", dtype="").removeprefix("ziya:features:")
    assert same != tokens_key("x", qformer_fingerprint="y").removeprefix("ziya:tokens:")
