"""Whole columns are asked which samples are silent; the answer is that of each row."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from factory.catalog.captions.json_file import JsonFileCaptions
from factory.catalog.captions.presence import perhaps_blank_names
from factory.catalog.captions.shuffle import Shuffle
from factory.catalog.captions.sources import (
    LIST_SEPARATOR,
    Captions,
    ColumnCaptions,
    FilenameCaptions,
    InstanceCaptions,
    TextFileCaptions,
)
from factory.catalog.facts import SCHEMA
from tests.support.examples import examples

SPACES = [chr(point) for point in range(sys.maxunicode + 1) if chr(point).isspace()]
# Many of what makes a text blank, with a few of what does not; U+0080 and U+1840 end in the
# same bytes as white space does, U+200B looks like it.
LETTERS = st.sampled_from([*SPACES, "_", "_", "a", ".", "/", "\u0080", "\u1840", "\u200b", "文"])
TEXTS = st.text(LETTERS, max_size=4) | st.sampled_from(["dog", "a dog ", f"dog{LIST_SEPARATOR}"])
ROWS = st.lists(
    st.tuples(
        st.text(LETTERS, max_size=8) | st.builds("p/{}.png".format, st.text(LETTERS, max_size=3)),
        st.none() | st.lists(st.none() | TEXTS, max_size=4),
    ),
    max_size=12,
)


@dataclass(frozen=True)
class Titles(Captions):
    """What another package may bring: only where the texts come from."""

    def _texts(self, key: str, raw: Sequence[str]) -> Iterable[str]:
        return [text.title() for text in raw[1:]]


KINDS: list[tuple[type[Captions], dict[str, object]]] = [
    (TextFileCaptions, {}),
    (TextFileCaptions, {"split_lines": False}),
    (FilenameCaptions, {}),
    (InstanceCaptions, {"prompt": ("dog", "cat dog")}),
    (ColumnCaptions, {}),
    (ColumnCaptions, {"columns": ("a", "b"), "fallback_columns": ("c",)}),
    (JsonFileCaptions, {"fields": ("a",), "fallback_fields": ("b",)}),
    (Titles, {}),
]
SHARED: list[dict[str, object]] = [
    {},
    {"prepend": "sks", "shuffle": Shuffle(count=2, split_on="space")},
    {"filters": ["dog"]},
    {"filters": [" dog", "s/a/ /", "文"]},
    {"filters": ["[a-z]", "s/_/ /"]},
    {"filters": ["", "s/a/b/"]},
]


def columns(
    rows: list[tuple[str, list[str | None] | None]], cut: int = 0
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Return keys and texts as the catalog keeps them, in two chunks that start within others."""
    filler = [("before.png", ["before"])]
    whole = [*filler, *rows, *filler]
    keys = pa.array([key for key, _ in whole], SCHEMA.field("key").type)
    texts = pa.array([text for _, text in whole], SCHEMA.field("text").type)
    cut = min(cut, len(rows))
    parts = [slice(1, 1 + cut), slice(1 + cut, 1 + len(rows))]
    return (
        pa.chunked_array([keys[part] for part in parts], keys.type),
        pa.chunked_array([texts[part] for part in parts], texts.type),
    )


@pytest.mark.parametrize("shared", SHARED, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize(("kind", "own"), KINDS, ids=lambda part: getattr(part, "__name__", ""))
@settings(max_examples=examples(60), deadline=None)  # the first one brings pyarrow.compute
@given(rows=ROWS, cut=st.integers(0, 12))
@example(rows=[("\u3000.png", ["\u3000\x1e"]), ("_", []), ("", None), (".", [""])], cut=1)
@example(rows=[("a/_/", ["", "dog"]), ("/_.", ["a", "", "b"]), ("a/._", [None, None, "a"])], cut=2)
def test_silence_agrees_with_each_row(
    kind: type[Captions],
    own: dict[str, object],
    shared: dict[str, object],
    rows: list[tuple[str, list[str | None] | None]],
    cut: int,
) -> None:
    captions = kind(**own, **shared)  # type: ignore[arg-type]
    silent = captions.silent(*columns(rows, cut))
    assert silent.dtype == np.bool_
    expected = [not captions.captions(key, raw or ()) for key, raw in rows]  # type: ignore[arg-type]
    assert silent.tolist() == expected


def test_null_lists_that_span_texts_say_nothing() -> None:
    lists = pa.ListArray.from_arrays(
        pa.array([0, 1, 2, 3]), pa.array(["a", "b", "c"]), mask=pa.array([False, True, False])
    )
    keys = pa.chunked_array([pa.array(["a", "b", "c"], pa.large_string())])
    silent = TextFileCaptions().silent(keys, pa.chunked_array([lists]))
    assert silent.tolist() == [False, True, False]


def test_no_rows_give_no_answers() -> None:
    keys, texts = (pa.chunked_array([], SCHEMA.field(name).type) for name in ("key", "text"))
    for kind, own in KINDS:
        for shared in SHARED:
            captions = kind(**own, **shared)  # type: ignore[arg-type]
            assert captions.silent(keys, texts).tolist() == []


def test_plain_names_are_never_looked_at_one_by_one() -> None:
    names = ["a/b_c.png", "文件/图片.jpg", "_x_y.png", "a.b/c", "süß.webp", ".hidden", "a_.b.png"]
    keys, _ = columns([(name, None) for name in names], cut=3)
    assert perhaps_blank_names(keys).tolist() == [6]
    blank, _ = columns([("___.png", None), ("a/ .png", None), ("b/\u3000.x", None)], cut=1)
    assert perhaps_blank_names(blank).tolist() == [0, 1, 2]


def test_rows_that_no_filter_touches_are_not_looked_at_one_by_one(monkeypatch) -> None:
    looked: list[str] = []
    spoken = Captions._edited_captions

    def watched(self: Captions, key: str, raw: Sequence[str]):
        looked.append(key)
        return spoken(self, key, raw)

    monkeypatch.setattr(Captions, "_edited_captions", watched)
    keys, texts = columns([("dog_1.png", ["a cat"]), ("b.png", ["dog"]), ("c.png", None)])
    assert TextFileCaptions(filters=["dog"]).silent(keys, texts).tolist() == [False, True, True]
    assert looked == ["b.png"]
    looked.clear()
    assert not FilenameCaptions(filters=["dog"]).silent(keys, texts).any()
    assert looked == ["dog_1.png"]


@pytest.mark.parametrize("form", ["{}.png", "a/{}.png", "a/_{}", "{}/", "a/{}{}_.x"])
def test_every_kind_of_white_space_is_blank(form: str) -> None:
    rows = [(form.replace("{}", space), [f"\n{space}\r"]) for space in SPACES]
    for captions in (FilenameCaptions(), TextFileCaptions(), ColumnCaptions()):
        assert captions.silent(*columns(rows, cut=9)).all()
