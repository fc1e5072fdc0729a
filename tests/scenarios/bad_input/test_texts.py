"""Captions that are absent, empty, huge, in other encodings or no text at all."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.catalog.captions.sources import ColumnCaptions, TextFileCaptions
from factory.catalog.scan.table import ParquetTable
from factory.errors import EmptyBackendError, TableError
from tests.scenarios.bad_input.building import refused
from tests.scenarios.bad_input.making import batches, details, dropped, kept, place, png, prepared

MIB = 2**20


def with_texts(root: Path, texts: dict[str, bytes]) -> None:
    """Write a picture and a caption file of each name, and one picture with a good caption."""
    for name, text in {"good": b"a good caption", **texts}.items():
        place(root, {f"pics/{name}.png": png(), f"pics/{name}.txt": text})


def test_files_in_other_encodings_are_dropped_with_the_command_that_mends_them(
    tmp_path: Path,
) -> None:
    text = "ein schönes Café"
    with_texts(
        tmp_path,
        {
            "latin": text.encode("latin-1"), "utf16": text.encode("utf-16"),
            "nomark": "a cafe".encode("utf-16-le"), "mark": text.encode("utf-8-sig"),
        },
    )  # fmt: skip
    with prepared(tmp_path, caption=TextFileCaptions()) as data:
        assert kept(data) == ["pics/good.png", "pics/mark.png"]
        assert dropped(data) == [
            "pics: 2 caption not UTF-8 (latin.png, utf16.png)",
            "pics: 1 caption not text (nomark.png)",
        ]
        found = details(data)
        assert {text for batch in batches(data) for text in batch.captions} == {
            "a good caption", text,
        }  # fmt: skip
    assert "iconv -f WINDOWS-1252 -t UTF-8" in found["pics/latin.png"]
    assert "iconv -f UTF-16 -t UTF-8" in found["pics/utf16.png"]
    assert "iconv -f UTF-16LE -t UTF-8" in found["pics/nomark.png"]


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with_texts(tmp_path, {"picture": png(), "zeros": bytes(500), "noise": bytes(range(256))})
    with prepared(tmp_path, encoded=True, caption=TextFileCaptions()) as data:
        assert kept(data) == ["pics/good.png"]
        assert dropped(data) == [
            "pics: 2 caption not UTF-8 (noise.png, picture.png)",
            "pics: 1 caption not text (zeros.png)",
        ]


def test_no_file_and_nothing_in_it(tmp_path: Path) -> None:
    with_texts(tmp_path, {"empty": b"", "blank": b" \n\t\r\n", "mark": b"\xef\xbb\xbf"})
    place(tmp_path, {"pics/alone.png": png()})
    with prepared(tmp_path, caption=TextFileCaptions()) as data:
        assert kept(data) == ["pics/good.png"]
        assert dropped(data) == ["pics: 4 no caption (alone.png, blank.png, empty.png, ...)"]


def test_captions_of_a_mebibyte_and_above(tmp_path: Path) -> None:
    with_texts(tmp_path, {"large": b"w " * (MIB // 2), "above": b"w" * (MIB + 1)})
    with prepared(tmp_path, encoded=True, caption=TextFileCaptions()) as data:
        assert kept(data) == ["pics/good.png", "pics/large.png"]
        assert dropped(data) == ["pics: 1 caption too long (above.png)"]
        assert "pics/above.txt is above 1048576 bytes" in details(data)["pics/above.png"]
        lengths = {len(text) for batch in batches(data) for text in batch.captions}
        assert lengths == {len("a good caption"), MIB - 1}


def test_filters_that_leave_nothing_of_any_caption(tmp_path: Path) -> None:
    with_texts(tmp_path, {"other": b"a good caption"})
    caption = TextFileCaptions(filters=("a good caption",))
    with (
        refused(
            EmptyBackendError,
            "backend 'pics': all 2 samples are dropped: 2 no caption; ",
            "choose another data/caption@data.backends.pics",
            "data.backends.pics.caption.filters",
        ),
        prepared(tmp_path, caption=caption),
    ):
        pass


TABLE = {"metadata": ParquetTable("pics/table.parquet"), "caption": ColumnCaptions()}


def with_table(root: Path, **columns: list[object]) -> Path:
    """Write pictures a, b, c and a table of some rows; return its path."""
    place(root, {f"pics/{name}.png": png() for name in ("a", "b", "c", "sub/d")})
    path = root / "pics/table.parquet"
    rows = len(next(iter(columns.values())))
    sizes = {"width": [96] * rows, "height": [64] * rows}
    pq.write_table(pa.table({**sizes, **columns}), path)
    return path


def test_null_empty_and_blank_captions_of_a_table(tmp_path: Path) -> None:
    names = ["a.png", "b.png", "c.png", "sub/d.png"]
    with_table(tmp_path, file_name=names, caption=[None, "", "  ", "words"])
    with prepared(tmp_path, **TABLE) as data:
        assert kept(data) == ["pics/sub/d.png"]
        assert dropped(data) == ["pics: 3 no caption (a.png, b.png, c.png)"]


def test_rows_that_repeat_a_key_or_lack_one(tmp_path: Path) -> None:
    names = ["a.png", "b.png", "a.png", "./a.png", None, "", "nowhere.png"]
    with_table(tmp_path, file_name=names, caption=[f"caption {n}" for n in range(7)])
    with prepared(tmp_path, encoded=True, **TABLE) as data:
        assert kept(data) == ["pics/a.png", "pics/b.png"]
        assert dropped(data) == [
            "pics: 2 duplicate row (a.png, a.png)",
            "pics: 2 no file name (row 4, row 5)",
            "pics: 1 file missing (nowhere.png)",
        ]
        seen = {key: text for batch in batches(data)
                for key, text in zip(batch.keys, batch.captions, strict=True)}  # fmt: skip
    assert seen == {"pics/a.png": "caption 0", "pics/b.png": "caption 1"}


def test_paths_of_other_systems_and_out_of_the_folder(tmp_path: Path) -> None:
    names = ["a.png", "sub\\d.png", "C:\\pics\\b.png", "/pics/c.png", "../pics/c.png", "A.PNG"]
    with_table(tmp_path, file_name=names, caption=["words"] * 6)
    with prepared(tmp_path, **TABLE) as data:
        assert kept(data) == ["pics/a.png"]
        assert dropped(data) == [
            r"pics: 3 file missing (A.PNG, C:\pics\b.png, sub\d.png)",
            "pics: 2 unsafe name (c.png, c.png)",
        ]
        found = details(data)
    hint = r"; folders are parted by '/', not by '\'"
    assert found["pics/sub\\d.png"].endswith(hint)
    assert found["pics/A.PNG"] == "file missing: pics/A.PNG is in the table only"


def test_a_table_of_windows_paths_alone(tmp_path: Path) -> None:
    with_table(tmp_path, file_name=["sub\\d.png"], caption=["words"])
    with refused(EmptyBackendError, "1 file missing", "parted by '/'"), prepared(tmp_path, **TABLE):
        pass


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("file_name", [{"path": "a.png"}, {"path": "b.png"}], "such as 'file_name.path'"),
        ("width", [[96], [96]], "column 'width'"),
        ("height", [True, False], "column 'height'"),
        ("caption", [{"text": "a"}, {"text": "b"}], "such as 'caption.text'"),
        ("caption", [b"\xff\xfe", b"\xff"], "is not UTF-8"),
    ],
)
def test_columns_of_a_wrong_type(
    tmp_path: Path, column: str, values: list[object], said: str
) -> None:
    columns = {"file_name": ["a.png", "b.png"], "caption": ["a", "b"], column: values}
    with_table(tmp_path, **columns)
    with refused(TableError, said, "data.backends.pics."), prepared(tmp_path, **TABLE):
        pass


def test_numbers_in_the_place_of_names(tmp_path: Path) -> None:
    with_table(tmp_path, file_name=[1.5, 2.5], caption=["a", "b"])
    with (
        refused(EmptyBackendError, "2 file missing, such as 'pics/1.5'"),
        prepared(tmp_path, **TABLE),
    ):
        pass


@pytest.mark.parametrize("damage", ["half", "empty", "tail", "flipped"])
def test_a_damaged_table(tmp_path: Path, damage: str) -> None:
    names = [f"{n:05d}.png" for n in range(5000)]
    path = with_table(tmp_path, file_name=names, caption=names)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[100:400] = bytes(300)
    else:
        del data[{"half": len(data) // 2, "empty": 0, "tail": len(data) - 3}[damage] :]
    path.write_bytes(data)
    with (
        refused(TableError, "pics/table.parquet in file://", "metadata.path"),
        prepared(tmp_path, **TABLE),
    ):
        pass
