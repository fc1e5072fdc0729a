"""Conditions on columns: what they keep, and what they refuse."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.catalog.row_filters import RowFilter
from factory.errors import TableError

numbers = st.none() | st.integers(-50, 50)
bounds = st.none() | st.integers(-60, 60)


def column(values: list[Any], kind: Any = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


@settings(deadline=None)
@given(st.lists(numbers), bounds, bounds, st.lists(st.integers(-60, 60), max_size=4))
def test_keeps_what_a_loop_would(
    values: list[int | None], low: int | None, high: int | None, chosen: list[int]
) -> None:
    if (low is None and high is None and not chosen) or (
        low is not None and high is not None and low > high
    ):
        with pytest.raises(ValueError):
            RowFilter("c", low, high, chosen)
        return
    kept = RowFilter("c", low, high, chosen).keeps(column(values, pa.int16()))
    expected = [
        v is not None
        and (low is None or v >= low)
        and (high is None or v <= high)
        and (not chosen or v in chosen)
        for v in values
    ]
    assert kept.dtype == np.bool_
    assert kept.tolist() == expected


def test_texts_and_truth_values() -> None:
    assert RowFilter("c", one_of=["a", "b"]).keeps(column(["a", None, "c", "b"])).tolist() == [
        True, False, False, True,
    ]  # fmt: skip
    kept = RowFilter("c", one_of=[True]).keeps(column([True, False, None]))
    assert kept.tolist() == [True, False, False]
    coded = column(["x", "y", None]).dictionary_encode()
    assert RowFilter("c", one_of=["y"]).keeps(coded).tolist() == [False, True, False]


def test_no_number_keeps_no_row() -> None:
    scores = column([0.5, math.nan, None, 0.4])
    assert RowFilter("q", minimum=0.45).keeps(scores).tolist() == [True, False, False, False]
    assert RowFilter("q", maximum=0.45).keeps(scores).tolist() == [False, False, False, True]
    assert RowFilter("q", minimum=0).keeps(pa.chunked_array([pa.nulls(2)])).tolist() == [False] * 2
    assert RowFilter("q", minimum=0).keeps(column([], pa.int8())).tolist() == []


def test_numbers_of_a_csv_are_texts() -> None:
    cells = column(["0.5", " 7 ", "", None, "-1e3"])
    assert RowFilter("c", minimum=0.5).keeps(cells).tolist() == [True, True, False, False, False]
    assert RowFilter("c", one_of=[7]).keeps(cells).tolist() == [False, True, False, False, False]
    assert RowFilter("c", one_of=["0.5"]).keeps(cells).tolist()[0]


def test_values_a_column_cannot_hold_match_nothing() -> None:
    small = column([1, 2], pa.uint8())
    assert RowFilter("c", one_of=[1000, -1, 1.5, 2.0]).keeps(small).tolist() == [False, True]


def test_large_numbers_are_compared_exactly() -> None:
    wide = column([2**53, 2**53 + 1])
    assert RowFilter("c", one_of=[2**53 + 1]).keeps(wide).tolist() == [False, True]


@pytest.mark.parametrize(
    ("wanted", "values", "said"),
    [
        (RowFilter("q.score", minimum=1), ["a"], "filter q.score: column 'q.score' holds string"),
        (RowFilter("c", one_of=["a"]), [1], "holds int64.*with a text"),
        (RowFilter("c", one_of=[True]), [1], "with a truth value"),
        (RowFilter("c", minimum=1), [True], "holds bool"),
        (RowFilter("c", minimum=1), [{"a": 1}], r"COLUMN\.FIELD"),
        (RowFilter("c", one_of=["a"]), [["a"]], "holds list"),
    ],
)
def test_wrong_types_are_named(wanted: RowFilter, values: list[Any], said: str) -> None:
    with pytest.raises(TableError, match=said):
        wanted.keeps(column(values))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"column": ""}, "column=NAME"),
        ({"column": "c"}, "no condition"),
        ({"column": "c", "minimum": 2, "maximum": 1}, "minimum 2 is above maximum 1"),
        ({"column": "c", "one_of": [1, "a"]}, "one kind"),
        ({"column": "c", "minimum": 1, "one_of": ["a"]}, "one_of must hold"),
        ({"column": "c", "one_of": [None]}, "got \\[None\\]"),
    ],
)
def test_bad_filters(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RowFilter(**settings)


def test_reason() -> None:
    assert RowFilter("quality.aesthetic", minimum=5).reason == "filter quality.aesthetic"
