"""Texts read from a column's memory are what Arrow says they are."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from factory.catalog.arrow_text import TextLists, Texts, reader_of

TEXTS = pa.large_string()
LISTS = pa.large_list(TEXTS)
some_texts = st.lists(st.text(max_size=6), min_size=1, max_size=8)
some_lists = st.lists(st.none() | st.lists(st.text(max_size=4), max_size=3), min_size=1, max_size=8)


@given(some_texts, st.data())
def test_texts_at_any_rows_of_any_part(texts: list[str], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(texts) - 1))
    part = pa.array(texts, TEXTS).slice(start)
    rows = np.array(data.draw(st.lists(st.integers(0, len(part) - 1), max_size=9)), np.int64)
    reader = reader_of(part)
    assert isinstance(reader, Texts)
    assert reader.at(rows) == part.take(pa.array(rows)).to_pylist()


@given(some_lists, st.data())
def test_lists_at_any_rows_of_any_part(lists: list[list[str] | None], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(lists) - 1))
    part = pa.array(lists, LISTS).slice(start)
    rows = np.array(data.draw(st.lists(st.integers(0, len(part) - 1), max_size=9)), np.int64)
    reader = reader_of(part)
    assert isinstance(reader, TextLists)
    assert reader.at(rows) == part.take(pa.array(rows)).to_pylist()


def test_columns_with_holes_are_left_to_arrow() -> None:
    assert reader_of(pa.array(["a", None], TEXTS)) is None
    assert reader_of(pa.array([["a", None]], LISTS)) is None
    assert reader_of(pa.array([1, 2])) is None
