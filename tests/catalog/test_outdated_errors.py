"""Errors of catalogs from before are looked into once more; what was right is left alone."""

import json
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from factory.backends.image import ImageBackend
from factory.catalog.captions.sources import FilenameCaptions
from factory.catalog.facts import Facts
from factory.catalog.scan.discovery import Discovery
from factory.catalog.scan.scan import Metadata
from factory.catalog.scan.table import ParquetTable
from factory.engine.local_engine import LocalEngine
from factory.registry.registry import Registry
from factory.registry.scan import scan_all
from factory.storage.local import LocalStorage
from factory.workspace import Workspace
from tests.catalog.fakes import Watched
from tests.media.test_orientation import chunk, png
from tests.support.pictures import write_pictures

OLD = (
    "not a picture: damaged PNG header",
    "truncated header: it goes on beyond the first 8 MiB",
    "damaged: PNG: Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK",
)


@pytest.fixture
def storage(tmp_path: Path) -> Watched:
    """Five sound pictures, one with a large profile, and one that is none."""
    write_pictures(tmp_path / "p", 5)
    profile = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(8 * 2**20)))
    (tmp_path / "p/large_profile.png").write_bytes(png(profile))
    (tmp_path / "p/none.png").write_text("no picture")
    return Watched(str(tmp_path))


def scan(storage: Watched, metadata: Metadata | None = None) -> Facts:
    backend = ImageBackend(
        name="p", prefix="p", storage=storage, caption=FilenameCaptions(),
        metadata=metadata or Discovery(),
    )  # fmt: skip
    place = Workspace(LocalStorage(storage.root))
    facts, errors = scan_all(Registry([backend], cache=place, engine=LocalEngine(1)))
    assert not errors
    return facts["p"]


def made_by_older_readers(storage: Watched, facts: Facts, errors: dict[int, str]) -> Path:
    """Publish facts as before there were numbers of readers; return their file."""
    place = Workspace(LocalStorage(storage.root))
    place.facts_store("p").save(facts.with_errors(errors))
    path = Path(storage.root) / place.catalog_key("p")
    table = pq.read_table(path)
    header = json.loads(table.schema.metadata[b"factory"])
    assert header.pop("readers") > 1
    pq.write_table(
        table.replace_schema_metadata({b"factory": json.dumps(header).encode()}), path,
        write_page_checksum=True,
    )  # fmt: skip
    return path


@pytest.mark.parametrize("error", OLD)
def test_errors_of_older_readers_are_looked_into_once(storage: Watched, error: str) -> None:
    right = scan(storage)
    assert right.table["error"].null_count == 6
    file = made_by_older_readers(storage, right, {5: error})
    storage.taken()
    again = scan(storage)
    assert storage.taken() == ["p/large_profile.png", "p/none.png"]
    assert again.table.equals(right.table)
    written = file.stat().st_mtime_ns
    assert scan(storage).table.equals(right.table)
    assert storage.taken() == []
    assert file.stat().st_mtime_ns == written


def test_errors_that_stay_are_not_looked_into_at_every_start(storage: Watched) -> None:
    right = scan(storage)
    made_by_older_readers(storage, right, {})  # of what is no picture alone
    storage.taken()
    assert scan(storage).table.equals(right.table)
    assert storage.taken() == ["p/none.png"]
    assert scan(storage).table.equals(right.table)
    assert storage.taken() == []


def test_catalogs_without_such_errors_are_not_written_anew(storage: Watched) -> None:
    (Path(storage.root) / "p/none.png").unlink()
    right = scan(storage)
    file = made_by_older_readers(storage, right, {})
    storage.taken()
    written = file.stat().st_mtime_ns
    assert scan(storage).table.equals(right.table)
    assert (storage.taken(), file.stat().st_mtime_ns) == ([], written)


def test_rows_of_tables_that_proved_unreadable_are_tried_again(storage: Watched) -> None:
    (Path(storage.root) / "t.csv").write_text("file_name,width,height\nlarge_profile.png,96,64\n")
    table = ParquetTable("t.csv")
    right = scan(storage, table)
    for error, kept in (("damaged: PNG: too large", 1), ("truncated: half of it", 0)):
        made_by_older_readers(storage, right, {0: error})
        assert scan(storage, table).table["error"].null_count == kept
    place = Workspace(LocalStorage(storage.root))
    place.facts_store("p").save(right.with_errors({0: "damaged: PNG: it is"}))
    assert scan(storage, table).table["error"].null_count == 0
