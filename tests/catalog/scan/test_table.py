"""A table gives names, sizes and captions, and every row that it cannot a reason."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.backends.image import ImageBackend
from factory.catalog.captions.sources import (
    LIST_SEPARATOR,
    ColumnCaptions,
    FilenameCaptions,
    TextFileCaptions,
)
from factory.catalog.facts import Fact, Facts
from factory.catalog.row_filters import RowFilter
from factory.catalog.scan.media_type import Pictures
from factory.catalog.scan.scan import Scan
from factory.catalog.scan.table import ParquetTable
from factory.catalog.tables.key_matching import normal_names
from factory.errors import ObjectNotFoundError, TableError, UnsafeKeyError
from factory.storage.base import safe_key
from tests.catalog.fakes import ENGINE, Watched, by_key, replace_file, scanned
from tests.support.pictures import SIZES, write_pictures

TABLE = ParquetTable(path="p/table.parquet")
STEMS = ParquetTable(path="p/table.parquet", extensionless=True)


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
    shown = "null" if width is None else width
    assert f"p/0001.png has {shown} x 96" in (scan(storage)["p/0001.png"].error or "")


def test_sizes_that_pandas_made_floats_are_sizes(storage: Watched) -> None:
    write_table(storage, width=[96.0, float("nan"), 80.5])
    facts = scan(storage)
    assert (facts["p/0000.png"].width, facts["p/0000.png"].error) == (96, None)
    assert reasons(storage) == dict.fromkeys(("p/0001.png", "p/0002.png"), "no size in table")


def test_texts_are_sizes_where_they_are_whole_numbers(storage: Watched) -> None:
    write_table(storage, width=["96", "64px", " 80.0 "])
    facts = scan(storage)
    assert [fact.width for fact in facts.values()] == [96, 0, 80]
    assert reasons(storage) == {"p/0001.png": "no size in table"}
    assert "has 64px x 96" in (facts["p/0001.png"].error or "")


@pytest.mark.parametrize(
    "width", [[True, False, True], [[96], [64], [80]], [{"w": 96}] * 3, [b"96"] * 3]
)
def test_a_column_that_can_hold_no_sizes_is_refused(storage: Watched, width: list[Any]) -> None:
    write_table(storage, width=width)
    with pytest.raises(TableError) as caught:
        scan(storage)
    message = str(caught.value)
    assert "column 'width' of p/table.parquet in file://" in message
    assert "whole numbers are wanted" in message
    assert "data.backends.pics.metadata.width_column" in message


def test_rows_without_a_name_are_dropped(storage: Watched) -> None:
    write_table(storage, file_name=["0000.png", None, ""])
    assert reasons(storage) == {"row 1": "no file name", "row 2": "no file name"}
    assert scan(storage)["p/0000.png"].error is None


def test_duplicate_rows_are_dropped_but_the_first(storage: Watched) -> None:
    write_table(storage, file_name=["0000.png", "./0000.png", "0002.png"])
    rows = scanned(storage, metadata=TABLE).rows()
    assert [(f.key, (f.error or "").partition(":")[0]) for f in rows] == [
        ("p/0000.png", ""),
        ("p/0000.png\x001", "duplicate row"),
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


@pytest.mark.parametrize("name", ["../0000.png", "/0000.png", "a/../../0000.png", "..", "."])
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


def test_fields_of_struct_columns_are_captions(storage: Watched) -> None:
    about = [{"en": "one", "tags": ["a", None, "b"]}, None, {"en": None, "tags": None}]
    write_table(storage, about=about)
    facts = scan(storage, captions=ColumnCaptions(columns=("about.en", "about.tags")))
    texts = [fact.text for fact in facts.values()]
    assert texts == [("one", f"a{LIST_SEPARATOR}b"), ("", ""), ("", "")]


def test_a_struct_is_no_caption_but_its_field_is(storage: Watched) -> None:
    write_table(storage, about=[{"en": "one"}] * 3)
    with pytest.raises(TableError, match="texts, or lists of texts are wanted") as caught:
        scan(storage, captions=ColumnCaptions(columns=("about",)))
    assert "name another column such as 'about.en' in data.backends.pics.caption" in str(
        caught.value
    )


@pytest.mark.parametrize("values", [[1, 2, None], [0.5, 1.5, None], [b"1", b"2", None]])
def test_numbers_and_unmarked_texts_are_captions(storage: Watched, values: list[Any]) -> None:
    write_table(storage, caption=values)
    facts = scan(storage, captions=ColumnCaptions()).values()
    shown = ["" if v is None else v.decode() if isinstance(v, bytes) else str(v) for v in values]
    assert [fact.text for fact in facts] == [(text,) for text in shown]


def test_bytes_that_are_no_text_are_refused(storage: Watched) -> None:
    write_table(storage, caption=[b"\xff", b"", b""])
    with pytest.raises(TableError, match=r"'caption' of .* is not UTF-8"):
        scan(storage, captions=ColumnCaptions())


def test_dictionary_columns_are_read_as_their_values(storage: Watched) -> None:
    words = pa.array(["red", "red", None]).dictionary_encode()
    names = pa.array([f"{n:04d}.png" for n in range(3)]).dictionary_encode()
    write_table(storage, caption=words, file_name=names)
    facts = scan(storage, captions=ColumnCaptions())
    assert [fact.text for fact in facts.values()] == [("red",), ("red",), ("",)]


def test_columns_that_filters_want_stay_beside_the_facts(storage: Watched) -> None:
    write_table(storage, score=[0.5, None, 1.5], file_name=["0002.png", "0001.png", "0000.png"])
    asked = Scan("pics", storage, "p", FilenameCaptions())
    object.__setattr__(asked, "columns", ("score",))
    facts = TABLE.scan(asked, ENGINE)
    assert facts.extra == ["column.score"]
    assert facts.table["column.score"].to_pylist() == [1.5, None, 0.5]


def test_files_without_a_row_are_counted_and_one_is_named(
    storage: Watched, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_table(storage)
    assert scanned(storage, metadata=TABLE).changes.unlisted == 0
    assert not caplog.records
    write_pictures(tmp_path / "p", 2, first=7)
    (tmp_path / "p/notes.txt").write_text("no picture")
    assert scanned(storage, metadata=TABLE).changes.unlisted == 2
    assert "pics: 2 files have no row in p/table.parquet" in caplog.text
    assert "such as p/0007.png" in caplog.text


def test_names_of_another_kind_get_a_hint(
    storage: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    write_table(storage, file_name=["0000", "0001", "0002"])
    assert set(reasons(storage).values()) == {"file missing"}
    assert "for names without suffixes set data.backends.pics.metadata.extensionless=true" in (
        caplog.text
    )


def test_names_without_suffix_mean_the_file_in_their_own_folder(
    storage: Watched, tmp_path: Path
) -> None:
    for folder in ("a", "b.c"):
        write_pictures(tmp_path / "p" / folder, 1)
        (tmp_path / "p" / folder / "0000.txt").write_text("beside it")
    (tmp_path / "p/b.c/0000.png").rename(tmp_path / "p/b.c/0000.v2.PNG")
    write_table(storage, file_name=["b.c/0000.v2", "a/0000", "0000"])
    facts = scanned(storage, metadata=STEMS)
    assert [(f.key, f.error) for f in facts.rows()] == [
        ("p/0000.png", None),
        ("p/a/0000.png", None),
        ("p/b.c/0000.v2.PNG", None),
    ]
    assert [f.width for f in facts.rows()] == [SIZES[2][0], SIZES[1][0], SIZES[0][0]]


def test_a_name_without_suffix_that_fits_two_files_is_dropped(
    storage: Watched, tmp_path: Path
) -> None:
    (tmp_path / "p/0001.jpg").write_bytes(b"another")
    write_table(storage, file_name=["0000", "0001", "0009"])
    facts = by_key(scanned(storage, metadata=STEMS))
    assert {k: (f.error or "").partition(":")[0] for k, f in facts.items()} == {
        "p/0000.png": "",
        "p/0001": "ambiguous name",
        "p/0009": "file missing",
    }


@pytest.mark.parametrize(
    "name", ["a\nb.png", "\N{GRINNING FACE}.png", "a\\b.png", " .png", "ä.png"]
)
def test_odd_names_are_names(storage: Watched, tmp_path: Path, name: str) -> None:
    (tmp_path / "p/0000.png").rename(tmp_path / "p" / name)
    write_table(storage, file_name=[name, "0001.png", "0002.png"])
    assert scan(storage)[f"p/{name}"].error is None


def test_frames_come_from_the_table(storage: Watched) -> None:
    write_table(storage, length=[9, None, -1])
    table = ParquetTable("p/table.parquet", frames_column="length")
    rows = scanned(storage, metadata=table).rows()
    assert rows[0].frames == 9
    errors = [(row.error or "").partition(":")[0] for row in rows]
    assert errors == ["", "no frames in table", "no frames in table"]


def test_a_table_without_sizes_has_them_measured(storage: Watched) -> None:
    names = ["0000.png", "0001.png", "gone.png", "cut.png", "0001.png"]
    (Path(storage.root) / "p/cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    data = pa.table({"file_name": names})
    pq.write_table(data, Path(storage.root) / "p/table.parquet")
    table = ParquetTable("p/table.parquet", width_column=None, height_column=None)
    facts = scanned(storage, metadata=table)
    rows = {row.key.partition("\0")[0]: row for row in reversed(facts.rows())}
    first = [rows[f"p/000{n}.png"] for n in (0, 1)]
    assert [(row.width, row.height) for row in first] == list(SIZES[:2])
    errors = sorted((row.error or "").partition(":")[0] for row in facts.rows())
    assert errors == ["", "", "duplicate row", "file missing", "truncated header"]
    assert storage.taken() == ["p/0000.png", "p/0001.png", "p/cut.png", "p/table.parquet"]
    again = scanned(storage, metadata=table, known=facts)
    assert storage.taken() == ["p/table.parquet"]
    assert again.table.equals(facts.table)


def test_captions_may_lie_in_files_beside_the_rows_of_a_table(storage: Watched) -> None:
    write_table(storage)
    facts = scan(storage, captions=TextFileCaptions())
    assert [fact.text for fact in facts.values()] == [(f"picture {n}\n",) for n in range(3)]


@pytest.mark.parametrize(
    "settings", [{"path": ""}, {"path": []}, {"path": "t", "width_column": None}]
)
def test_settings_that_contradict_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"path must (be a key|name)|go together"):
        ParquetTable(**settings)


@given(names=st.lists(st.text("ab./\0\n\\é", max_size=8), max_size=12))
def test_names_are_normalised_as_the_storage_does(names: list[str]) -> None:
    clean, unsafe = normal_names(pa.array(names, pa.large_string()))
    for name, made, refused in zip(names, clean.to_pylist(), unsafe.tolist(), strict=True):
        try:
            wanted = safe_key(name)
        except UnsafeKeyError:
            assert refused
        else:
            assert (made, refused) == (wanted, False)


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


def test_rows_of_a_table_that_fail_a_filter_are_dropped(storage: Watched) -> None:
    write_table(storage, score=[0.1, 0.9, None])
    backend = ImageBackend(
        name="pics", storage=storage, prefix="p", metadata=TABLE, resolution=64, alignment=16,
        filters=[RowFilter("score", minimum=0.5)],
    )  # fmt: skip
    catalog = backend.catalog(backend.scan(None, ENGINE), 0)
    assert [catalog.facts.key(row) for row in catalog.decisions.order] == ["p/0001.png"]
    assert catalog.decisions.dropped() == {"filter score": 2}


def test_faces_are_not_looked_for_where_a_table_has_sizes(storage: Watched) -> None:
    write_table(storage)
    what = Scan("pics", storage, "p", FilenameCaptions(), medium=Pictures(faces=True))
    with pytest.raises(TableError, match="every cut would be at random; set metadata"):
        TABLE.scan(what, ENGINE)
