"""Tables without what they were said to have name the column, and those that are there."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.errors import EmptyBackendError, ObjectNotFoundError, TableError
from tests.scenarios.bad_input.building import batches, built, pinned, refused
from tests.support.pictures import write_pictures

CSV = (
    *pinned("web", storage="csv", caption="csv"),
    "data.backends.web.storage.table=urls.csv",
)
PARQUET = (
    *pinned("pics", metadata="parquet", caption="filename"),
    "data.backends.pics.metadata.path=pics/table.parquet",
)


def test_a_missing_csv(tmp_path: Path) -> None:
    with refused(
        ObjectNotFoundError,
        "there is no table 'urls.csv' in file://",
        "correct storage.table",
        "while checking the storage of backend 'web'",
    ):
        built(tmp_path, *CSV).prepare_data()


def test_a_missing_url_column(tmp_path: Path) -> None:
    (tmp_path / "urls.csv").write_text("uri,caption\nhttp://127.0.0.1:1/a.png,a\n")
    with refused(
        TableError,
        "urls.csv has no column 'url'; it has: uri, caption; did you mean 'uri'?",
        "while checking the storage of backend 'web'",
    ):
        built(tmp_path, *CSV).prepare_data()


def test_a_missing_caption_column(tmp_path: Path) -> None:
    (tmp_path / "urls.csv").write_text("url,captions\nno url,a\n")
    with refused(
        TableError,
        "urls.csv has no column 'caption'; it has: url, captions; did you mean 'captions'?",
    ):
        built(tmp_path, *CSV).prepare_data()


def test_rows_that_are_no_urls(tmp_path: Path) -> None:
    (tmp_path / "urls.csv").write_text("url,caption\nC:\\pictures\\a.png,a\nftp://h/b.png,b\n")
    with refused(
        EmptyBackendError,
        "backend 'web': all 2 samples are dropped: 2 not readable",
        "of urls.csv (the header not counted)",
        "in column 'url' is no http(s) URL",
        "correct or remove the row",
    ):
        built(tmp_path, *CSV).prepare_data()


def write_table(root: Path, **columns: list[object]) -> None:
    write_pictures(root / "pics", 4, sizes=((96, 64),))
    pq.write_table(pa.table(columns), root / "pics/table.parquet")


def test_a_missing_parquet_table(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pics", 1)
    with refused(
        ObjectNotFoundError,
        "no table pics/table.parquet in file://",
        "set data.backends.pics.metadata.path to its key",
    ):
        built(tmp_path, *PARQUET).prepare_data()


def test_parquet_without_the_named_column(tmp_path: Path) -> None:
    write_table(tmp_path, file_name=["0000.png"], widht=[96], height=[64])
    with refused(
        TableError,
        "pics/table.parquet in file://",
        "has no column 'width' (did you mean 'widht'?); its columns are file_name, widht, height",
        "name the right ones in data.backends.pics.metadata or .caption.columns",
    ):
        built(tmp_path, *PARQUET).prepare_data()


def test_the_advice_works(tmp_path: Path) -> None:
    names = [f"{n:04d}.png" for n in range(4)]
    write_table(tmp_path, file_name=names, widht=[96] * 4, height=[64] * 4)
    data = built(tmp_path, *PARQUET, "data.backends.pics.metadata.width_column=widht")
    assert sum(len(batch.keys) for batch in batches(data)) == 4
    data.close()


def test_a_parquet_table_without_rows(tmp_path: Path) -> None:
    write_table(tmp_path, file_name=[], width=[], height=[])
    with refused(EmptyBackendError, "no picture in 'pics'", "or the rows of its table"):
        built(tmp_path, *PARQUET).prepare_data()


LINES = (
    *pinned("pics", metadata="parquet", caption="parquet"),
    "data.backends.pics.metadata.path=pics/table.jsonl",
)


def test_a_broken_line_of_a_json_table(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pics", 1)
    (tmp_path / "pics/table.jsonl").write_text('{"file_name": "0000.png"}\n{"file_name": \n')
    with refused(
        TableError,
        "pics/table.jsonl in file://",
        "is not JSON lines, or a damaged one: line 2 is broken",
        "set data.backends.pics.metadata.path to another",
    ):
        built(tmp_path, *LINES).prepare_data()


def test_the_advice_for_names_without_suffix_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pictures(tmp_path / "pics", 4, sizes=((96, 64),))
    rows = [
        {"file_name": f"{n:04d}", "width": "96", "height": 64.0, "caption": str(n)}
        for n in range(4)
    ]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / "pics/table.jsonl").write_text(text)
    with refused(EmptyBackendError, "all 4 samples are dropped: 4 file missing"):
        built(tmp_path, *LINES).prepare_data()
    advice = "data.backends.pics.metadata.extensionless=true"
    assert f"for names without suffixes set {advice}" in caplog.text
    data = built(tmp_path, *LINES, advice)
    assert sum(len(batch.keys) for batch in batches(data)) == 4
    data.close()
