"""Which recipes share a key, and which never do?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.cache.format.recipe import KEY_BYTES, as_keys, canonical, recipe_key, recipe_keys
from factory.errors import CacheError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PARTS = st.dictionaries(st.text(), VALUES, max_size=4)


def test_key_is_the_same_in_every_version() -> None:
    parts = {"caption": "a cat é", "size": [64, 0.5], "crop": None, "flip": True}
    assert canonical(parts) == (
        '{"caption":"a cat \\u00e9","crop":null,"flip":true,"size":[64,0.5]}'
    )
    assert recipe_key(parts).hex() == "56ac93c3c567b6274de67662717a2481"


@given(PARTS)
def test_order_of_parts_does_not_matter(parts: dict[str, object]) -> None:
    assert recipe_key(dict(reversed(parts.items()))) == recipe_key(parts)


@given(PARTS, PARTS)
def test_two_recipes_share_a_key_only_if_they_are_equal(
    one: dict[str, object], two: dict[str, object]
) -> None:
    assert (recipe_key(one) == recipe_key(two)) == (_typed(one) == _typed(two))


def _typed(value: object) -> object:
    """Tell booleans from numbers, which Python calls equal."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return (isinstance(value, bool), value)


@given(PARTS, st.lists(PARTS, max_size=4))
def test_many_keys_are_the_single_keys(
    common: dict[str, object], rows: list[dict[str, object]]
) -> None:
    keys = recipe_keys(common, rows)
    assert [key.tobytes() for key in keys] == [
        recipe_key({"common": common, "row": row}) for row in rows
    ]


@given(st.text(), st.lists(st.tuples(st.text(), VALUES), min_size=1, max_size=4))
def test_columns_give_the_keys_of_rows(name: str, pairs: list[tuple[str, object]]) -> None:
    columns = {name: [one for one, _ in pairs], name + "%s": [two for _, two in pairs]}
    rows = [{name: one, name + "%s": two} for one, two in pairs]
    assert (recipe_keys({}, columns) == recipe_keys({}, rows)).all()


def test_columns_may_be_arrays() -> None:
    pairs = np.array([[1, -2], [3, 2**40], [0, 0]])
    columns = {"n": np.arange(3), "x": np.array([0.5, 1.0, 2.0]), "pair": pairs}
    rows = [
        {"n": 0, "x": 0.5, "pair": [1, -2]},
        {"n": 1, "x": 1, "pair": [3, 2**40]},
        {"n": 2, "x": 2, "pair": (0, 0)},
    ]
    assert (recipe_keys({}, columns) == recipe_keys({}, rows)).all()


@pytest.mark.parametrize(
    "other",
    [
        {"key": "a.jpg", "etag": "1"},
        {"key": "folder/a.png", "etag": "1"},
        {"key": "a.png", "etag": "2"},
        {"key": "a.png", "etag": 1},
        {"key": "a.png"},
    ],
)
def test_pictures_that_differ_in_anything_never_collide(other: dict[str, object]) -> None:
    assert recipe_key({"key": "a.png", "etag": "1"}) != recipe_key(other)


def test_common_part_tells_keys_apart() -> None:
    rows = [{"key": "a.png"}]
    assert recipe_keys({"encoder": "a"}, rows)[0] != recipe_keys({"encoder": "b"}, rows)[0]


def test_whole_floats_are_whole_numbers() -> None:
    assert recipe_key({"area": 1.0}) == recipe_key({"area": 1})
    assert recipe_key({"area": -0.0}) == recipe_key({"area": 0})
    assert recipe_key({"area": np.float32(0.5)}) == recipe_key({"area": 0.5})
    assert recipe_key({"area": True}) != recipe_key({"area": 1})


def test_names_that_are_not_unicode_have_keys() -> None:
    assert recipe_key({"key": "\udcff.png"}) != recipe_key({"key": "\udcfe.png"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1, 2}, object()])
def test_values_without_one_text_are_refused(value: object) -> None:
    with pytest.raises(CacheError, match="allowed are texts, finite numbers"):
        recipe_key({"part": [value]})


def test_names_of_parts_are_texts() -> None:
    with pytest.raises(CacheError, match="names a part 1"):
        recipe_key({1: "x"})  # type: ignore[dict-item]


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(CacheError, match="a: 1, b: 2"):
        recipe_keys({}, {"a": ["x"], "b": ["x", "y"]})


@given(st.lists(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES), max_size=5))
def test_keys_keep_all_their_bytes(names: list[bytes]) -> None:
    names.append(b"ends in zeros".ljust(KEY_BYTES, b"\0"))
    keys = as_keys(names)
    assert [key.tobytes() for key in keys] == names
    assert keys.tolist() == names
    for other in (np.array(names, "S16"), keys, keys.view(np.uint8).reshape(-1, KEY_BYTES)):
        assert (as_keys(other) == keys).all()


def test_no_keys_are_keys() -> None:
    assert as_keys([]).shape == (0,)
    assert as_keys(np.array([])).shape == (0,)
    assert recipe_keys({}, []).shape == (0,)


@pytest.mark.parametrize(
    "wrong", [[b"short"], [b"x" * 17], np.zeros(3), np.zeros((2, 8), np.uint8)]
)
def test_keys_of_another_length_are_refused(wrong: object) -> None:
    with pytest.raises(CacheError, match="16 bytes"):
        as_keys(wrong)  # type: ignore[arg-type]
