"""A Parquet table gives names, sizes and captions, and every row that it cannot a reason."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.catalog.captions import LIST_SEPARATOR, ColumnCaptions
from factory.catalog.facts import Fact, Facts
from factory.catalog.parquet import ParquetTable
from factory.errors import ObjectNotFoundError, TableError
from tests.catalog.fakes import Watched, by_key, replace_file, scanned
from tests.pictures import SIZES, write_pictures

TABLE = ParquetTable(path="p/table.parquet")


@pytest.fixture
def storage(tmp_path: Path) -> Watched:
    write_pictures(tmp_path / "p", 3)
    return Watched(str(tmp_path))


def write_table(storage: Watched, **columns: Any) -> None:
    """Write a table of three good rows; columns given replace its own."""
    table: dict[str, Any] = {
        "file_name": [f"{n:04d}.png" for n in range(3)],
        "width": [width for width, _ in SIZES],
        "height": [height for _, height in SIZES],
    }
    data = pa.table({**table, **columns})
    pq.write_table(data, Path(storage.root) / "p/table.parquet")


def scan(storage: Watched, **settings: Any) -> dict[str, Fact]:
    """Scan by the table."""
    return by_key(scanned(storage, metadata=TABLE, **settings))


def reasons(storage: Watched) -> dict[str, str]:
    """Return the reason of each row that has one."""
    return {k: (f.error or "").partition(":")[0] for k, f in scan(storage).items() if f.error}


def test_sizes_come_from_the_table_and_no_picture_is_opened(storage: Watched) -> None:
    write_table(storage)
    facts = scan(storage)
    assert [(f.width, f.height, f.error) for f in facts.values()] == [(*s, None) for s in SIZES]
    assert storage.taken() == ["p/table.parquet"]
    assert all(fact.etag for fact in facts.values())


def test_only_rows_of_the_table_count(storage: Watched, tmp_path: Path) -> None:
    write_table(storage)
    write_pictures(tmp_path / "p", 1, first=7)
    assert len(scan(storage)) == 3


def test_a_changed_file_and_a_changed_table_are_noticed(storage: Watched, tmp_path: Path) -> None:
    write_table(storage)
    known = scanned(storage, metadata=TABLE)
    assert scanned(storage, metadata=TABLE, known=known).changes.unchanged == 3
    replace_file(tmp_path / "p/0001.png", tmp_path / "p/0000.png")
    write_table(storage, width=[50, 50, 50])
    now = scanned(storage, metadata=TABLE, known=known)
    assert (now.changes.changed, now.changes.unchanged) == (1, 2)
    assert set(now.column("width").tolist()) == {50}


def test_a_missing_table_says_which_setting_to_mend(storage: Watched) -> None:
    with pytest.raises(
        ObjectNotFoundError,
        match=r"no table p/table.parquet in file://.*; set data.backends.pics.metadata.path to it",
    ):
        scan(storage)


@pytest.mark.parametrize("data", [b"", b"file_name,width\n", b"PAR1....PAR1"])
def test_what_is_not_parquet_is_refused(storage: Watched, data: bytes) -> None:
    (Path(storage.root) / "p/table.parquet").write_bytes(data)
    with pytest.raises(TableError, match=r"p/table.parquet in file://.* is not a Parq") as e:
        scan(storage)
    assert "data.backends.pics.metadata.path" in str(e.value)


def test_damaged_pages_are_refused_too(storage: Watched) -> None:
    write_table(storage, width=list(range(900)), height=[9] * 900, file_name=["x"] * 900)
    file = Path(storage.root) / "p/table.parquet"
    whole = bytearray(file.read_bytes())
    whole[4:600] = bytes(596)
    file.write_bytes(whole)
    with pytest.raises(TableError, match="or a damaged one"):
        scan(storage)


def test_a_missing_column_is_named_with_a_suggestion_and_the_columns(storage: Watched) -> None:
    data = pa.table({"file_nam": ["0000.png"], "width": [9], "tall": [9]})
    pq.write_table(data, Path(storage.root) / "p/table.parquet")
    with pytest.raises(TableError) as caught:
        scan(storage)
    text = str(caught.value)
    assert "has no column 'file_name' (did you mean 'file_nam'?), 'height'" in text
    assert "its columns are file_nam, width, tall" in text
    assert "data.backends.pics.metadata" in text


def test_a_missing_caption_column_is_named(storage: Watched) -> None:
    write_table(storage, captions=["a", "b", "c"])
    with pytest.raises(TableError, match=r"'caption' .did you mean 'captions'") as caught:
        scan(storage, captions=ColumnCaptions())
    assert ".caption.columns" in str(caught.value)


def test_other_column_names(storage: Watched) -> None:
    data = pa.table({"f": ["0000.png"], "w": [5], "h": [6]})
    pq.write_table(data, Path(storage.root) / "p/table.parquet")
    table = ParquetTable("p/table.parquet", file_column="f", width_column="w", height_column="h")
    (fact,) = scanned(storage, metadata=table).rows()
    assert (fact.key, fact.width, fact.height) == ("p/0000.png", 5, 6)


@pytest.mark.parametrize("width", [None, 0, -3, 2**40])
def test_a_row_without_a_size_is_dropped(storage: Watched, width: int | None) -> None:
    write_table(storage, width=pa.array([96, width, 80], pa.int64()))
    assert reasons(storage) == {"p/0001.png": "no size in table"}
    assert f"p/0001.png has {width!r} x 96" in (scan(storage)["p/0001.png"].error or "")


def test_sizes_that_pandas_made_floats_are_sizes(storage: Watched) -> None:
    write_table(storage, width=[96.0, float("nan"), 80.5])
    facts = scan(storage)
    assert (facts["p/0000.png"].width, facts["p/0000.png"].error) == (96, None)
    assert reasons(storage) == dict.fromkeys(("p/0001.png", "p/0002.png"), "no size in table")


def test_texts_are_no_sizes(storage: Watched) -> None:
    write_table(storage, width=["96", "64", "80"])
    assert set(reasons(storage).values()) == {"no size in table"}
    assert "'96' x 64" in (scan(storage)["p/0000.png"].error or "")


def test_rows_without_a_name_are_dropped(storage: Watched) -> None:
    write_table(storage, file_name=["0000.png", None, ""])
    assert reasons(storage) == {"row 1": "no file name", "row 2": "no file name"}
    assert scan(storage)["p/0000.png"].error is None


def test_duplicate_rows_are_dropped_but_the_first(storage: Watched) -> None:
    write_table(storage, file_name=["0000.png", "./0000.png", "0002.png"])
    rows = scanned(storage, metadata=TABLE).rows()
    assert [(f.key, (f.error or "").partition(":")[0]) for f in rows] == [
        ("p/0000.png", ""),
        ("p/0000.png", "duplicate row"),
        ("p/0002.png", ""),
    ]


def test_a_file_that_is_in_the_table_only_is_dropped_until_it_comes(
    storage: Watched, tmp_path: Path
) -> None:
    write_table(storage)
    (tmp_path / "p/0001.png").rename(tmp_path / "aside.png")
    known = scanned(storage, metadata=TABLE)
    assert by_key(known)["p/0001.png"].error == ("file missing: p/0001.png is in the table only")
    (tmp_path / "aside.png").rename(tmp_path / "p/0001.png")
    assert scan(storage, known=known)["p/0001.png"].error is None


@pytest.mark.parametrize("name", ["../0000.png", "/0000.png", "a/../../0000.png"])
def test_names_that_leave_the_folder_are_dropped(storage: Watched, name: str) -> None:
    write_table(storage, file_name=[name, "0001.png", "0002.png"])
    assert reasons(storage) == {name: "unsafe name"}


def test_sub_folders_do_not_collide(storage: Watched, tmp_path: Path) -> None:
    write_pictures(tmp_path / "p/a", 1)
    write_pictures(tmp_path / "p/b", 1)
    write_table(storage, file_name=["a/0000.png", "b/0000.png", "0000.png"])
    facts = scan(storage)
    assert list(facts) == ["p/0000.png", "p/a/0000.png", "p/b/0000.png"]
    assert not any(fact.error for fact in facts.values())


def test_a_prefix_of_the_root(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    data = pa.table({"file_name": ["0000.png"], "width": [9], "height": [9]})
    pq.write_table(data, tmp_path / "t.parquet")
    facts = scanned(Watched(str(tmp_path)), "", metadata=ParquetTable("t.parquet"))
    assert [(f.key, f.error) for f in facts.rows()] == [("0000.png", None)]


def test_captions_of_columns_and_lists(storage: Watched) -> None:
    write_table(storage, caption=["one", None, "three"], tags=[["a", "b"], [], None])
    captions = ColumnCaptions(columns=("caption", "tags"))
    facts = scan(storage, captions=captions)
    assert [fact.text for fact in facts.values()] == [
        ("one", f"a{LIST_SEPARATOR}b"),
        ("", ""),
        ("three", ""),
    ]
    texts = [captions.captions(fact.key, fact.text or ()) for fact in facts.values()]
    assert texts == [("one", "a", "b"), (), ("three",)]


def proved(facts: Facts, key: str, error: str) -> Facts:
    """Return the facts as they are published after encoding a picture failed."""
    return facts.with_errors({[fact.key for fact in facts.rows()].index(key): error})


def test_a_picture_that_proved_unreadable_stays_out_until_it_changes(
    storage: Watched, tmp_path: Path
) -> None:
    write_table(storage)
    known = proved(scanned(storage, metadata=TABLE), "p/0001.png", "truncated: at byte 9")
    assert scan(storage, known=known)["p/0001.png"].error == "truncated: at byte 9"
    replace_file(tmp_path / "p/0001.png", tmp_path / "p/0000.png")
    assert scan(storage, known=known)["p/0001.png"].error is None


def test_a_picture_that_was_not_readable_once_is_tried_again(storage: Watched) -> None:
    write_table(storage)
    known = proved(scanned(storage, metadata=TABLE), "p/0001.png", "not readable: it vanished")
    assert scan(storage, known=known)["p/0001.png"].error is None


def test_a_size_added_to_the_table_brings_its_row_back(storage: Watched) -> None:
    write_table(storage, width=pa.array([96, None, 80], pa.int64()))
    known = scanned(storage, metadata=TABLE)
    write_table(storage)
    assert scan(storage, known=known)["p/0001.png"].error is None
