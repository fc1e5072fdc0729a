"""Sizes from the table's own columns: no picture is opened."""

from typing import Any

import pyarrow as pa
import pytest

from factory.catalog.captions.sources import ColumnCaptions, FilenameCaptions
from factory.catalog.scan.column_facts import ColumnFacts
from factory.catalog.scan.media_type import Pictures
from factory.catalog.scan.scan import Scan
from factory.engine.local_engine import LocalEngine
from factory.errors import TableError
from factory.records import ObjectInfo
from factory.storage.base import TabularStorage
from factory.storage.memory import MemoryStorage


class Table(TabularStorage):
    """Rows whose pictures must not be read."""

    identity = "table"

    def __init__(self, **columns: list[Any]) -> None:
        self.columns = columns
        self.keys = [f"{n}.img" for n in range(len(next(iter(columns.values()))))]

    def rows(self, columns: Any) -> pa.Table:
        return pa.table({"key": self.keys, **{name: self.columns[name] for name in columns}})

    def objects(self, prefix: str = "") -> Any:
        return (ObjectInfo(key, 10, f"e{key}") for key in self.keys)

    def refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a picture was opened")

    head = read = write = delete = check = refuse


def scan(table: Any, captions: Any = None, known: Any = None, **columns: Any) -> Any:
    what = Scan("hub", table, "", captions or FilenameCaptions(), known)
    return ColumnFacts(**columns).scan(what, LocalEngine(1))


def test_sizes_and_captions_come_from_columns() -> None:
    table = Table(width=[10, 20.0, None], height=[30, 40, 50], caption=["a", "b", None])
    facts = scan(table, ColumnCaptions())
    assert facts.column("width").tolist() == [10, 20, 0]
    assert facts.column("height").tolist() == [30, 40, 0]
    assert [facts.text(n) for n in range(3)] == [("a",), ("b",), ("",)]
    errors = facts.table["error"].to_pylist()
    assert errors[:2] == [None, None]
    assert errors[2] == "no size in table: 2.img has null x 50"


def test_columns_of_any_name_and_frames() -> None:
    table = Table(w=[4], h=[5], n=[7])
    facts = scan(table, width_column="w", height_column="h", frames_column="n")
    assert [facts.column(c).tolist() for c in ("width", "height", "frames")] == [[4], [5], [7]]


@pytest.mark.parametrize("bad", [0, -3, 2.5, "x", "", "1²", "-4", 2**31])
def test_sizes_that_are_none(bad: Any) -> None:
    (error,) = scan(Table(width=[bad], height=[5])).table["error"].to_pylist()
    assert error.startswith("no size in table: 0.img has ")


def test_the_texts_of_a_csv() -> None:
    facts = scan(Table(width=["12", " 7 "], height=["5", "6"]))
    assert facts.column("width").tolist() == [12, 7]


def test_a_column_that_can_hold_no_size_is_refused() -> None:
    with pytest.raises(TableError, match="column 'width' of table holds bool, whole numbers are"):
        scan(Table(width=[True], height=[5]))


def test_what_proved_damaged_stays_so() -> None:
    table = Table(width=[4, 4], height=[5, 5])
    known = scan(table).with_errors({0: "truncated: half of it", 1: "not readable: timeout"})
    errors = scan(table, known=known).table["error"].to_pylist()
    assert errors == ["truncated: half of it", None]


def test_a_storage_without_a_table() -> None:
    with pytest.raises(TableError, match=r"metadata@data\.backends\.hub=discovery"):
        scan(MemoryStorage("none"))


def test_faces_are_not_looked_for_in_columns() -> None:
    what = Scan("hub", Table(width=[1]), "", FilenameCaptions(), medium=Pictures(faces=True))
    with pytest.raises(TableError, match="set metadata=discovery"):
        ColumnFacts().scan(what, LocalEngine(1))
