"""Can one ask why a row is missing, and is the part that differs named?"""

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from factory.cache.format.recipe import recipe_keys
from factory.cache.index.explain_miss import explain_miss, stored_rows
from factory.cache.store import TensorStore
from factory.errors import CacheError
from tests.support.stores import drop

COMMON = {"kind": "latents", "encoder": {"name": "vae", "dtype": "fp16"}}
ROW = {"etag": "5-1a", "cut": [0, 12], "flip": False}


def write(
    store: TensorStore,
    label: str,
    common: Mapping[str, object] = COMMON,
    row: Mapping[str, object] = ROW,
    noted: bool = True,
) -> None:
    """Publish a row of a label."""
    with store.writer(recipe=common) as writer:
        keys = recipe_keys(common, [row])
        writer.add(keys, {"field": torch.ones(1, 2)}, [label], [row] if noted else None)
    store.refresh()


def test_a_row_that_is_there_is_said_to_be(store: TensorStore) -> None:
    write(store, "a.png")
    (text,) = explain_miss(store, "a.png", COMMON, ROW)
    assert text.startswith("'a.png' is stored as made today (key ")


def test_a_label_that_never_was_is_said_not_to_be(store: TensorStore) -> None:
    write(store, "a.png")
    for label in ("b.png", "a.pn", "a.pngg"):
        (text,) = explain_miss(store, label, COMMON, {**ROW, "etag": "other"})
        assert f"no row of {label!r} was ever stored" in text


def test_a_row_that_was_dropped_is_told_from_one_that_differs(store: TensorStore) -> None:
    write(store, "a.png")
    drop(store, recipe_keys(COMMON, [ROW]))
    (text,) = explain_miss(store, "a.png", COMMON, ROW)
    assert "was dropped or lost" in text


@pytest.mark.parametrize(
    ("common", "row", "sentences"),
    [
        ({}, {"etag": "6-1b"}, ['etag differs: was "5-1a", is "6-1b"']),
        ({}, {"cut": [0, 0]}, ["cut differs: was [0, 12], is [0, 0]"]),
        ({}, {"caption": "é"}, ['caption differs: was nothing, is "é"']),
        (
            {"encoder": {"name": "vae", "dtype": "bf16"}},
            {"flip": True},
            ['encoder.dtype differs: was "fp16", is "bf16"', "flip differs: was false, is true"],
        ),
    ],
)
def test_each_part_that_differs_is_named(
    store: TensorStore,
    common: Mapping[str, object],
    row: Mapping[str, object],
    sentences: list[str],
) -> None:
    write(store, "a.png")
    write(store, "b.png")
    assert explain_miss(store, "a.png", {**COMMON, **common}, {**ROW, **row}) == sentences


def test_the_stored_row_that_differs_least_is_compared_with(store: TensorStore) -> None:
    write(store, "a.png", row={**ROW, "etag": "1", "flip": True})
    write(store, "a.png", row={**ROW, "etag": "2"})
    write(store, "a.png", common={"kind": "other"}, row={**ROW, "etag": "3"})
    assert explain_miss(store, "a.png", COMMON, ROW) == ['etag differs: was "2", is "5-1a"']


def test_rows_without_notes_say_what_they_can(store: TensorStore) -> None:
    write(store, "a.png", noted=False)
    (text,) = explain_miss(store, "a.png", COMMON, {**ROW, "flip": True})
    assert text == "a part of its own differs, and its writer did not note those"
    (text,) = explain_miss(store, "a.png", {**COMMON, "kind": "text"}, ROW)
    assert text == 'kind differs: was "latents", is "text"'


def test_labels_of_any_kind_are_found(store: TensorStore) -> None:
    labels = ["a.png", "\udcff.png", 'a "quoted"\ncaption \\', "", "a.png.png"]
    keys = recipe_keys({}, {"row": range(5)})
    with store.writer(recipe={"encoder": "x", "size": 1.0}) as writer:
        writer.add(keys[:3], {"field": torch.ones(3, 2)}, labels[:3])
        writer.add(keys[3:], {"field": torch.ones(2, 2)}, labels[3:], [{"n": 3}, {"n": 4}])
        writer.add([b"k" * 16], {"field": torch.ones(1, 2)})
    store.refresh()
    for label, key in zip(labels, keys, strict=True):
        (row,) = [one for one in stored_rows(store, label) if one.key == key.tobytes()]
        assert row.common == {"encoder": "x", "size": 1}
    assert [one.parts for one in stored_rows(store, "a.png.png")] == [{"n": 4}]
    assert stored_rows(store, "b.png") == []


def test_parts_must_be_as_many_as_rows(store: TensorStore) -> None:
    with store.writer(recipe={}) as writer, pytest.raises(CacheError, match="parts: 1"):
        writer.add(recipe_keys({}, {"row": np.arange(2)}), {"f": torch.ones(2)}, parts=[{}])
