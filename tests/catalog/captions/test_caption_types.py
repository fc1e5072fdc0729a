"""Captions of columns are texts, names of classes or refusals: never the `repr` of an object."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from factory.backends.streaming.blocks import judge
from factory.catalog.captions.sources import ColumnCaptions
from factory.catalog.scan.column_facts import ColumnFacts
from factory.catalog.scan.discovery import Discovery
from factory.catalog.scan.table import ParquetTable
from factory.errors import TableError
from factory.storage.huggingface import HuggingFaceStorage
from tests.catalog.fakes import Watched, scanned
from tests.support.streams import picture, stream


def write(folder: Path, feature: Any, cells: list[Any]) -> str:
    """Save a dataset of pictures with a column `said`."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn

    features = Features(
        {"image": ImageColumn(), "width": Value("int32"), "height": Value("int32"),
         "said": feature}
    )  # fmt: skip
    rows = {
        "image": [{"bytes": picture(n, (64, 64)), "path": None} for n in range(len(cells))],
        "width": [64] * len(cells), "height": [64] * len(cells), "said": cells,
    }  # fmt: skip
    Dataset.from_dict(rows, features=features).save_to_disk(folder)
    return str(folder)


def said(folder: str, column: str = "said") -> list[list[tuple[str, ...]]]:
    """Return the captions of each row as a stored set says them, by columns, and as a stream."""
    captions = ColumnCaptions(columns=(column,))
    storage = HuggingFaceStorage(folder)
    found = []
    for metadata in (Discovery(), ColumnFacts()):
        facts = scanned(storage, "", metadata=metadata, captions=captions)
        found.append([captions.captions("", facts.text(row)) for row in range(len(facts))])
    backend = stream(folder, caption=captions)
    opened = backend.open()
    outcomes = judge(backend, opened, list(opened.rows(0)), 0)
    found.append([getattr(each, "captions", (each,)) for each in outcomes])
    return found


def all_said(folder: str, column: str = "said") -> list[tuple[str, ...]]:
    first, *others = said(folder, column)
    assert all(other == first for other in others)
    return first


def test_class_labels_are_named(tmp_path: Path) -> None:
    from datasets import ClassLabel, List

    names = ClassLabel(names=["cat", "dog"])
    one = write(tmp_path / "one", names, [0, 1])
    assert all_said(one) == [("cat",), ("dog",)]
    several = write(tmp_path / "several", List(names), [[0, 1], [1]])
    assert all_said(several) == [("cat", "dog"), ("dog",)]
    nested = write(tmp_path / "nested", {"kind": names}, [{"kind": 1}, {"kind": 0}])
    assert all_said(nested, "said.kind") == [("dog",), ("cat",)]


def test_folders_of_classes_are_named(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "set/train" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "set/train" / name / "0.png")
    captions = ColumnCaptions(columns=("label",))
    storage = HuggingFaceStorage(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    facts = scanned(storage, "", captions=captions)
    assert [facts.text(row) for row in range(2)] == [("cat",), ("dog",)]


def test_bytes_are_texts_where_they_are_utf8(tmp_path: Path) -> None:
    from datasets import List, Value

    whole = write(tmp_path / "whole", Value("binary"), ["über".encode(), b"two"])
    assert all_said(whole) == [("über",), ("two",)]
    lists = write(tmp_path / "lists", List(Value("binary")), [[b"a", b"b"], [b"c"]])
    assert all_said(lists) == [("a", "b"), ("c",)]


def test_one_cell_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    from datasets import Value

    folder = write(tmp_path / "set", Value("binary"), [b"one", b"\xff\xfe", b"three"])
    captions = ColumnCaptions(columns=("said",))
    facts = scanned(HuggingFaceStorage(folder), "", captions=captions)
    errors = facts.table["text_error"].to_pylist()
    assert errors == [None, "caption not UTF-8: a cell of column 'said'", None]
    assert [facts.text(row) for row in (0, 2)] == [("one",), ("three",)]
    assert said(folder)[2][1] == ("caption not UTF-8: a cell of column 'said'",)


def test_numbers_in_lists_are_digits(tmp_path: Path) -> None:
    from datasets import List, Value

    folder = write(tmp_path / "set", List(Value("int64")), [[1, 2], [3]])
    assert all_said(folder) == [("1", "2"), ("3",)]


def test_fields_of_objects_in_lists_are_reached(tmp_path: Path) -> None:
    from datasets import List, Value

    cells = [[{"raw": "a"}, {"raw": None}, {"raw": "b"}], [], [{"raw": "c"}]]
    folder = write(tmp_path / "set", List({"raw": Value("string")}), cells)
    stored, by_columns, streamed = said(folder, "said.raw")
    assert stored == by_columns == [("a", "b"), (), ("c",)]
    assert streamed == [("a", "b"), ("no caption",), ("c",)]


@pytest.mark.parametrize(
    ("feature", "cell", "named"),
    [
        (lambda v, _: {"short": v("string")}, {"short": "a"}, "said.short"),
        (lambda v, li: li({"raw": v("string")}), [{"raw": "a"}], "said.raw"),
        (lambda v, li: li(li(v("string"))), [["a"]], "lists of texts are wanted"),
        (lambda v, _: v("timestamp[s]"), 1, "lists of texts are wanted"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_and_a_field_named(
    tmp_path: Path, feature: Any, cell: Any, named: str
) -> None:
    from datasets import List, Value

    folder = write(tmp_path / "set", feature(Value, List), [cell])
    captions = ColumnCaptions(columns=("said",))
    where = r"data\.backends\.\w+\.caption\.columns"
    for metadata in (Discovery(), ColumnFacts()):
        with pytest.raises(TableError, match=rf"{named}.*{where}"):
            scanned(HuggingFaceStorage(folder), "", metadata=metadata, captions=captions)
    with pytest.raises(TableError, match=rf"{named}.*{where}"):
        stream(folder, caption=captions).open()


@pytest.fixture
def tables(tmp_path: Path) -> Watched:
    rows = [
        {
            "file_name": f"{n}.png", "width": 64, "height": 64,
            "meta": {"caption": f"nested {n}", "tags": ["a", "b"]},
            "boxes": [{"caption": f"box {n}"}, {"caption": "other"}],
        }
        for n in range(2)
    ]  # fmt: skip
    (tmp_path / "p").mkdir()
    for n in range(2):
        Image.new("RGB", (64, 64)).save(tmp_path / f"p/{n}.png")
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "t.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    return Watched(str(tmp_path))


def texts(storage: Watched, path: str, column: str) -> list[tuple[str, ...]]:
    captions = ColumnCaptions(columns=(column,))
    facts = scanned(storage, metadata=ParquetTable(path=path), captions=captions)
    return [captions.captions("", facts.text(row)) for row in range(len(facts))]


@pytest.mark.parametrize("path", ["t.jsonl", "t.json", "t.parquet"])
def test_nested_fields_of_tables(tables: Watched, path: str) -> None:
    assert texts(tables, path, "meta.caption") == [("nested 0",), ("nested 1",)]
    assert texts(tables, path, "meta.tags") == [("a", "b")] * 2
    assert texts(tables, path, "boxes.caption") == [("box 0", "other"), ("box 1", "other")]
    with pytest.raises(TableError, match=r"no column 'meta\.captoin' \(did you mean 'meta\.cap"):
        texts(tables, path, "meta.captoin")
    with pytest.raises(TableError, match=r"no column 'boxes\.capt' \(did you mean 'boxes\.cap"):
        texts(tables, path, "boxes.capt")
    with pytest.raises(TableError, match=r"such as 'meta\.caption' or 'meta\.tags'"):
        texts(tables, path, "meta")


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_mixed_columns_keep_the_captions_of_lists(tables: Watched, suffix: str) -> None:
    def rows(*cells: Any) -> list[tuple[str, ...]]:
        made = [
            {"file_name": f"{n}.png", "width": 64, "height": 64, "said": cell}
            for n, cell in enumerate(cells)
        ]
        text = json.dumps(made) if suffix == "json" else "\n".join(map(json.dumps, made))
        (Path(tables.root) / f"m.{suffix}").write_text(text)
        return texts(tables, f"m.{suffix}", "said")

    assert rows(["one", "two"], "single", None, 7)[:2] == [("one", "two"), ("single",)]
    assert sorted(rows(["one", 2, None], 7)) == [("7",), ("one", "2")]
    assert rows("a", 7) == [("a",), ("7",)]
    with pytest.raises(TableError, match=r"name one of the fields of its objects: said\.en"):
        rows({"en": "a"}, "b")
    with pytest.raises(TableError, match="nothing in common"):
        rows([["a"]], "b")
