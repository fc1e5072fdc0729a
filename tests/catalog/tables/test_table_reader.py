"""Tables of every format and of several files give the same facts, or say what is wrong."""

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.catalog.captions.sources import LIST_SEPARATOR, ColumnCaptions
from factory.catalog.facts import Facts
from factory.catalog.scan.table import ParquetTable
from factory.catalog.tables.casts import caption_lists, texts, whole
from factory.catalog.tables.table_reader import TableReader
from factory.errors import ObjectNotFoundError, TableError
from factory.storage.memory import MemoryStorage
from tests.catalog.fakes import Watched, scanned
from tests.support.examples import examples
from tests.support.pictures import write_pictures

Row = dict[str, Any]
ROWS: list[Row] = [
    {"file_name": "0000.png", "width": 96, "height": 64, "caption": 'one, "two"\nthree'},
    {"file_name": "0001.png", "width": None, "height": 64, "caption": None},
    {"file_name": None, "width": 64, "height": 96, "caption": "2020-01-01"},
    {"file_name": "0002.png", "width": 80, "height": 80, "caption": "été \N{GRINNING FACE}"},
    {"file_name": "../0002.png", "width": 80, "height": 80, "caption": "007"},
    {"file_name": "0000.png", "width": 1, "height": 1, "caption": "null"},
    {"file_name": "missing.png", "width": 1, "height": 1, "caption": ""},
]


def as_parquet(rows: list[Row]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def as_lines(rows: list[Row]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def as_list(rows: list[Row]) -> bytes:
    return json.dumps(rows, indent=1, ensure_ascii=False).encode()


def as_columns(rows: list[Row]) -> bytes:
    return json.dumps({name: [row[name] for row in rows] for name in rows[0]}).encode()


def as_csv(rows: list[Row], delimiter: str = ",") -> bytes:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def as_tsv(rows: list[Row]) -> bytes:
    return as_csv(rows, "\t")


FORMATS: dict[str, Callable[[list[Row]], bytes]] = {
    "t.parquet": as_parquet,
    "t.jsonl": as_lines,
    "t.NDJSON": lambda rows: b"\xef\xbb\xbf" + as_lines(rows).replace(b"\n", b"\r\n\n"),
    "t.jsonl.gz": lambda rows: gzip.compress(as_lines(rows)),
    "t.json": as_list,
    "u.json": as_columns,
    "lines.json": as_lines,
    "t.json.gz": lambda rows: gzip.compress(as_list(rows)),
    "t.csv": as_csv,
    "t.csv.gz": lambda rows: gzip.compress(as_csv(rows)),
    "t.tsv": as_tsv,
    "no_suffix": as_parquet,
}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    root = tmp_path_factory.mktemp("tables")
    write_pictures(root / "p", 3)
    return Watched(str(root))


def put(storage: Watched, key: str, data: bytes) -> str:
    """Write a table and return its key."""
    path = Path(storage.root) / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return key


def facts(storage: Watched, path: str | list[str], **options: Any) -> Facts:
    captions = ColumnCaptions(columns=("caption",))
    return scanned(storage, metadata=ParquetTable(path, **options), captions=captions)


def refused(storage: Watched, path: str | list[str], **options: Any) -> str:
    """Return the message of the error that a scan by a table raises."""
    with pytest.raises(TableError) as caught:
        facts(storage, path, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_gives_the_same_facts(storage: Watched, name: str) -> None:
    wanted = facts(storage, put(storage, "same/wanted.parquet", as_parquet(ROWS)))
    found = facts(storage, put(storage, f"same/{name}", FORMATS[name](ROWS)))
    place = f"same/{name}"
    assert [
        {**vars_of(row), "error": (row.error or "").replace(place, "same/wanted.parquet")}
        for row in found.rows()
    ] == [{**vars_of(row), "error": row.error or ""} for row in wanted.rows()]
    assert [(row.error or "").partition(":")[0] for row in wanted.rows()] == [
        "unsafe name", "", "duplicate row", "no size in table", "", "file missing", "no file name",
    ]  # fmt: skip


def vars_of(row: Any) -> dict[str, Any]:
    """Return a fact's fields that a table can say something about."""
    return {
        name: getattr(row, name)
        for name in ("key", "size", "etag", "width", "height", "frames", "text")
    }


CELL = st.one_of(
    st.none(),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=6),
)
SIZE = st.one_of(
    st.none(),
    st.integers(-3, 2**33),
    st.sampled_from(["640", " 640.0 ", "+7", "6e2", "0x10", "", "-1", "640px", "٣", "9" * 30]),
    st.floats(),
    st.booleans(),
)


@given(
    rows=st.lists(
        st.fixed_dictionaries({"file_name": CELL, "width": SIZE, "height": SIZE, "caption": CELL}),
        min_size=1,
        max_size=6,
    )
)
@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_random_rows_are_read_whole_or_refused(storage: Watched, rows: list[Row]) -> None:
    key = put(storage, "random/t.jsonl", as_lines(rows))
    try:
        found = facts(storage, key)
    except TableError as error:
        # A column of nothing but truth values is no column of sizes.
        assert "holds bool, whole numbers are wanted" in str(error)
        return
    assert len(found) == len(rows)
    for fact in found.rows():
        assert (fact.width > 0) == (fact.height > 0) == (fact.error is None) or fact.error
        assert fact.key


@given(values=st.lists(SIZE, max_size=8))
def test_whole_numbers_are_exactly_those(values: list[Any]) -> None:
    shown = [None if v is None else json.dumps(v) if not isinstance(v, str) else v for v in values]
    found = whole(pa.chunked_array([pa.array(shown, pa.large_string())]))
    for text, number in zip(shown, found.tolist(), strict=True):
        assert number == _expected(text)
    numbers = [v for v in values if isinstance(v, float)]
    for value, number in zip(numbers, whole(pa.array(numbers, pa.float64())), strict=True):
        assert number == (int(value) if value > 0 and value == value // 1 < 2**31 else 0)


def _expected(text: str | None) -> int:
    head, _, tail = ("" if text is None else text.strip()).partition(".")
    digits = head.removeprefix("+")
    good = digits.isascii() and digits.isdigit() and not tail.strip("0")
    return int(digits) if good and 0 < int(digits) < 2**31 else 0


@pytest.mark.parametrize(
    "column",
    [
        pa.array([640, None, 2**31, -1], pa.int64()),
        pa.array([640, None, 2**63, 0], pa.uint64()),
        pa.array([640, None, 640.5, float("inf")], pa.float64()),
        pa.array([640, None, 2.0**31, float("nan")], pa.float32()),
        pa.array(["640", "", "x", None], pa.large_string()),
        pa.array([640, None, -1, 0], pa.int16()),
    ],
)
def test_numbers_of_every_type(column: pa.Array) -> None:
    assert whole(column).tolist() == [640, 0, 0, 0]
    assert whole(column).dtype == np.int32


def test_captions_of_columns_side_by_side() -> None:
    lists = pa.array([["a", None, "b"], [], None, ["c"]]).slice(1)
    columns = [texts(lists.cast(pa.large_list(pa.large_string()))), texts(pa.array([1, None, 3]))]
    assert caption_lists(columns).to_pylist() == [["", "1"], ["", ""], ["c", "3"]]
    nested = pa.array([["a", None, "b"]], pa.large_list(pa.large_string()))
    assert texts(nested).to_pylist() == [f"a{LIST_SEPARATOR}b"]
    with pytest.raises(TypeError, match="lists of texts"):
        texts(pa.array([[["a"]]]))


def rows_of(count: int, first: int = 0, **more: Any) -> list[Row]:
    """Return good rows of the pictures there are."""
    names = [f"{first + n:04d}.png" for n in range(count)]
    return [{"file_name": n, "width": 9, "height": 9, "caption": n, **more} for n in names]


def test_several_files_are_one_table(storage: Watched) -> None:
    first = put(storage, "many/a.parquet", as_parquet(rows_of(2)))
    second = put(storage, "many/b.parquet", as_parquet(rows_of(1, 2)))
    put(storage, "many/_metadata.parquet", b"of another tool")
    put(storage, "many/_SUCCESS", b"")
    for path in (
        [first, second],
        "many",
        "many/",
        "many/[ab].parquet",
        "many/?.parquet",
        "**ny/?.parquet",
    ):
        if "[" in path:
            with pytest.raises(ObjectNotFoundError, match="no table"):
                facts(storage, path)
        else:
            assert [row.error for row in facts(storage, path).rows()] == [None] * 3
    assert len(facts(storage, [first, first])) == 2


def test_a_folder_of_several_kinds_is_refused(storage: Watched) -> None:
    put(storage, "mixed/a.parquet", as_parquet(rows_of(2)))
    put(storage, "mixed/b.json", b"{}")
    assert "set data.backends.pics.metadata.path to a pattern such as mixed/*.parquet" in (
        refused(storage, "mixed")
    )
    assert len(facts(storage, "mixed/*.parquet")) == 2


def test_folders_are_columns(storage: Watched) -> None:
    bare = [{"file_name": f"{n:04d}.png", "width": 9, "height": 9} for n in range(3)]
    put(storage, "hive/caption=a%20b/x.parquet", as_parquet(bare[:1]))
    put(storage, "hive/caption=__HIVE_DEFAULT_PARTITION__/x.parquet", as_parquet(bare[1:2]))
    put(storage, "hive/caption=c/x.parquet", as_parquet([{**bare[2], "caption": "its own"}]))
    found = facts(storage, "hive").rows()
    assert [row.text for row in found] == [("a b",), ("",), ("its own",)]


@pytest.mark.parametrize(
    ("names", "kind"), [(("1", "-20"), "int64"), (("01", "2"), "large_string")]
)
def test_folders_of_numbers_are_columns_of_numbers(names: tuple[str, str], kind: str) -> None:
    made = MemoryStorage(f"folders-{kind}")
    for name in names:
        made.write(f"t/part={name}/x.parquet", as_parquet(rows_of(1)))
    rows = TableReader(made, ("t",), "data.backends.pics").read(["part"], [])
    assert str(rows.table["part"].type) == kind
    assert {str(value) for value in rows.table["part"].to_pylist()} == set(names)


def test_columns_that_a_file_lacks_are_null_in_its_rows(storage: Watched) -> None:
    put(storage, "union/a.parquet", as_parquet(rows_of(1)))
    put(storage, "union/b.parquet", as_parquet([{"file_name": "0001.png", "height": 9.0}]))
    first, second = facts(storage, "union/*.parquet").rows()
    assert (first.error, first.text) == (None, ("0000.png",))
    assert second.error == "no size in table: p/0001.png has null x 9"


def test_files_that_disagree_about_a_type_are_named(storage: Watched) -> None:
    put(storage, "clash/a.parquet", as_parquet(rows_of(1)))
    put(storage, "clash/b.parquet", as_parquet(rows_of(1, 1, width="9")))
    message = refused(storage, "clash/*.parquet")
    assert "column 'width' is large_string in clash/b.parquet" in message
    assert "and int64 in clash/a.parquet" in message
    assert "data.backends.pics.metadata.path" in message


def test_rows_without_a_name_say_where_they_stand(storage: Watched) -> None:
    put(storage, "rows/a.jsonl", as_lines(rows_of(2)))
    put(storage, "rows/b.jsonl", as_lines([rows_of(1, 2)[0], {"file_name": ""}]))
    errors = {row.key: row.error for row in facts(storage, "rows").rows()}
    assert errors["row 3"] == "no file name: row 1 of rows/b.jsonl"


def test_paths_that_lead_nowhere(storage: Watched) -> None:
    for path in ("none.parquet", "none/*.parquet", "p/*.parquet", "p"):
        with pytest.raises(ObjectNotFoundError, match=r"set data.backends.pics.metadata.path to"):
            facts(storage, path)
    with pytest.raises(ValueError, match=r"metadata.path must stay below the storage's root"):
        facts(storage, "../t.parquet")


def test_a_list_with_one_caption_or_many_a_line(storage: Watched) -> None:
    rows = rows_of(3)
    rows[0]["caption"], rows[1]["caption"] = "one", ["two", "three"]
    found = facts(storage, put(storage, "odd/either.jsonl", as_lines(rows))).rows()
    assert [row.text for row in found] == [
        ("one",), (f"two{LIST_SEPARATOR}three",), ("0002.png",)
    ]  # fmt: skip


def test_what_comes_late_in_json_lines_is_found(storage: Watched) -> None:
    rows = [{"file_name": f"{n}", "width": 9, "height": 9, "about": {}} for n in range(1500)]
    rows[1400] |= {"width": 640.5, "about": {"caption": "late"}}
    key = put(storage, "odd/late.jsonl", as_lines(rows))
    captions = ColumnCaptions(columns=("about.caption",))
    found = scanned(storage, metadata=ParquetTable(key), captions=captions).table
    assert found.num_rows == 1500
    assert [text for text in found["text"].to_pylist() if text != [""]] == [["late"]]


BROKEN = {
    "line.jsonl": (as_lines(rows_of(2)) + b'{"file_name": "x"\n', "line 3 is broken"),
    "kind.jsonl": (as_lines(rows_of(2)) + b"\n[1]\n", "line 4 is a list, not an object"),
    "text.jsonl": (b'{"file_name": "\xff"}\n', "line 1 is not UTF-8"),
    "half.jsonl": (b'{"file_name": "\\ud800"}\n', "'file_name' holds half a character"),
    "deep.json": (b"[" * 200_000, "nested too deeply"),
    "word.json": (b'"a word"', "it holds a text, not a list of objects"),
    "list.json": (b'[{"file_name": "x"}, 3]', "entry 1 is a number, not an object"),
    "pandas.json": (b'{"file_name": {"0": "x"}}', "'file_name' is an object, not a list; pandas"),
    "uneven.json": (b'{"file_name": ["x"], "width": []}', "not of one length"),
    "cut.json": (as_list(rows_of(2))[:-9], "cut.json in file://"),
    "cut.jsonl.gz": (gzip.compress(as_lines(rows_of(9)))[:-9], "cut.jsonl.gz in file://"),
    "not.csv.gz": (b"file_name,width\n", "Not a gzipped file"),
    "utf16.csv": ("file_name\nx\n".encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
    "latin.csv": (b"file_name,width,height,caption\n\xe9,1,1,a\n", "invalid UTF8"),
    "ragged.csv": (b"file_name,width,height,caption\na,1\n", "Expected 4 columns, got 2"),
    "empty.csv": (b"", "Empty CSV file"),
    "twice.csv": (b"file_name,file_name\na,b\n", "2 columns 'file_name'"),
    "cut.parquet": (as_parquet(rows_of(2))[:-20], "is not a Parquet file, or a damaged one"),
    "csv.parquet": (as_csv(rows_of(2)), "is not a Parquet file, or a damaged one"),
    "table.xlsx": (b"PK", "is of no known kind; tables end with .parquet"),
    "empty.jsonl": (b"\n", "no column 'file_name', 'width', 'height', 'caption'"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_what_is_broken_is_named(storage: Watched, name: str) -> None:
    data, wanted = BROKEN[name]
    message = refused(storage, put(storage, f"broken/{name}", data))
    assert f"broken/{name} in file://" in message
    assert wanted in message
    assert "data.backends.pics.metadata" in message


def test_a_table_is_read_from_storages_without_paths() -> None:
    made = MemoryStorage("formats")
    for key, write in FORMATS.items():
        made.write(f"t/{key}", write(ROWS))
        rows = TableReader(made, (f"t/{key}",), "data.backends.pics").read(["caption"], ["caption"])
        wanted = [row["caption"] or "" for row in ROWS]
        assert [text or "" for text in rows.table["caption"].to_pylist()] == wanted


def test_a_table_that_grows_too_large_is_refused_before_it_fills_memory(storage: Watched) -> None:
    rows = as_lines(rows_of(2))
    for key, start in (("bomb.jsonl.gz", rows), ("bomb.csv.gz", as_csv(rows_of(2))),
                       ("bomb.json.gz", b"[")):  # fmt: skip
        bomb = gzip.compress(start + b"\n" * 50 * 2**20)
        assert len(bomb) < 100_000
        tracemalloc.start()
        message = refused(storage, put(storage, key, bomb), max_unzipped_mb=4)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10 * 2**20
        assert f"{key} in file://" in message
        assert "over 4 MiB unzipped" in message
        assert "raise data.backends.pics.metadata.max_unzipped_mb" in message
    path = put(storage, "t.jsonl.gz", gzip.compress(rows) + gzip.compress(rows))  # two members
    limit = 2 * len(rows) / 2**20
    assert len(facts(storage, path, max_unzipped_mb=limit)) == 4
    refused(storage, path, max_unzipped_mb=limit - 1e-9)
    limits = [facts(storage, path, max_unzipped_mb=most).origin for most in (1, 2)]
    assert limits[0] == limits[1] == facts(storage, path).origin
