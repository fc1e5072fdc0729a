"""Trash and hidden files are left out of every storage, counted, and taken where they are meant."""

import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from factory.backends.image import ImageBackend
from factory.backends.streaming.blocks import judge
from factory.catalog.captions.sources import FilenameCaptions, InstanceCaptions
from factory.catalog.facts import Facts
from factory.catalog.facts_store import FactsStore
from factory.catalog.globs import matching
from factory.catalog.left_out import IGNORED, LeftOut, ignored
from factory.catalog.scan.discovery import Discovery
from factory.catalog.scan.table import ParquetTable
from factory.config.schema.metadata import ColumnsConfig, DiscoveryConfig
from factory.engine.local_engine import LocalEngine
from factory.errors import EmptyBackendError
from factory.reports.run_report import left_out_lines
from factory.storage.base import Storage
from factory.storage.huggingface import HuggingFaceStorage
from factory.storage.local import LocalStorage
from factory.storage.memory import MemoryStorage
from factory.storage.tar.tar_storage import TarStorage
from tests.catalog.scan.test_column_facts import Table
from tests.catalog.scan.test_column_facts import scan as scan_columns
from tests.reports.preview.building import dry_run, one_backend, problems
from tests.scenarios.bad_input.making import prepared
from tests.support.streams import stream

TRASH = (
    ".git/x.jpg", ".Trash-1000/files/x.jpg", ".ipynb_checkpoints/ok-checkpoint.jpg",
    ".thumbs/ok.jpg", ".hidden.jpg", "sub/.svn/x.jpg", "#snapshot/x.jpg",
    "$RECYCLE.BIN/z.jpg", "$Recycle.Bin/z.jpg", "#recycle/r.jpg",
    "lost+found/l.jpg", "System Volume Information/s.jpg",
)  # fmt: skip
DROPPED = (
    ".DS_Store", "._ok.jpg", "._ok.txt", "sub/._ok.jpg", "__MACOSX/ok.jpg",
    "@eaDir/ok.jpg/SYNOFILE_THUMB_M.jpg", "Thumbs.db", "desktop.ini",
)  # fmt: skip
OTHERS = ("clip.mp4", "raw/a.CR2", "raw/b.cr2", "notes", "ok.txt")
GOOD = ("ok.jpg", "a.git/x.jpg", "recycle/r.jpg", "sub/lost.jpg")


def fill(folder: Path, names: tuple[str, ...] = (*TRASH, *DROPPED, *OTHERS, *GOOD)) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".jpg":
            Image.new("RGB", (64, 64), (9, 99, 199)).save(file)
        else:
            file.write_bytes(b"none")


def backend(storage: Storage, **settings: Any) -> ImageBackend:
    return ImageBackend(name="pics", storage=storage, caption=FilenameCaptions(), **settings)


def scan(storage: Storage, prefix: str = "", **settings: Any) -> Facts:
    return backend(storage, prefix=prefix, **settings).scan(None, LocalEngine(1))


def keys(facts: Facts) -> list[str]:
    return facts.table["key"].to_pylist()


@pytest.mark.parametrize("prefix", ["", "p"])
def test_folders_and_buckets(tmp_path: Path, prefix: str) -> None:
    fill(tmp_path / prefix)
    memory = MemoryStorage(f"left-out-{prefix}")
    for file in tmp_path.rglob("*"):
        if file.is_file():
            memory.write(file.relative_to(tmp_path).as_posix(), file.read_bytes())
    for storage in (LocalStorage(str(tmp_path)), memory):
        facts = scan(storage, prefix)
        assert keys(facts) == sorted(f"{prefix}/{n}".lstrip("/") for n in GOOD)
        assert sum(facts.left_out.ignored.values()) == len(TRASH) + len(DROPPED)
        assert facts.left_out.ignored["$RECYCLE.BIN/"] == 2
        assert facts.left_out.ignored["__MACOSX/"] == facts.left_out.ignored["Thumbs.db"] == 1
        assert facts.left_out.suffixes == {".mp4": 1, ".cr2": 2, "without suffix": 1}


def test_what_is_ignored_may_be_changed(tmp_path: Path) -> None:
    fill(tmp_path)
    every = scan(LocalStorage(str(tmp_path)), metadata=Discovery(ignore=()))
    pictures = [name for name in DROPPED if name.endswith(".jpg")]
    assert len(every) == len(TRASH) + len(pictures) + len(GOOD)
    assert every.left_out.suffixes[".db"] == every.left_out.suffixes[".ini"] == 1
    assert not every.left_out.ignored
    own = scan(LocalStorage(str(tmp_path)), metadata=Discovery(ignore=("recycle/", "a.GIT/")))
    assert own.left_out.ignored == {"recycle/": 1, "a.GIT/": 1}
    assert len(own) == len(every) - 2


def test_a_hidden_prefix_is_meant(tmp_path: Path) -> None:
    fill(tmp_path / ".cache/photos", GOOD)
    assert len(scan(LocalStorage(str(tmp_path)), ".cache/photos")) == len(GOOD)


def test_members_of_tars(tmp_path: Path) -> None:
    fill(tmp_path / "files")
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data/a.tar", "w") as archive:
        for name in sorted((*TRASH, *DROPPED, *OTHERS, *GOOD)):
            archive.add(tmp_path / "files" / name, name)
    facts = scan(TarStorage(LocalStorage(str(tmp_path / "data"))))
    assert keys(facts) == sorted(f"a.tar/{name}" for name in GOOD)
    assert sum(facts.left_out.ignored.values()) == len(TRASH) + len(DROPPED)


def test_folders_read_by_hugging_face(tmp_path: Path) -> None:
    names = ("cat/0.jpg", "#recycle/r.jpg", "@eaDir/e.jpg", "lost+found/l.jpg")
    fill(tmp_path / "set", names)
    storage = HuggingFaceStorage(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    facts = scan(storage)
    assert len(facts) == 1
    assert sum(facts.left_out.ignored.values()) == 3
    big = stream(str(tmp_path / "set"), caption=InstanceCaptions(prompt="a"))
    opened = big.open()
    rows = [row for shard in range(opened.shards) for row in opened.rows(shard)]
    outcomes = [each for each in judge(big, opened, rows, 0) if isinstance(each, str)]
    assert sorted(outcomes) == sorted(f"ignored: {name}" for name in names[1:])


def test_rows_of_columns_that_were_made_of_trash() -> None:
    class Folder(Table):
        def paths(self) -> pa.ChunkedArray:
            return pa.chunked_array([["ok.jpg", "@eaDir/e.jpg", ""]], pa.large_string())

    table = Folder(width=[1, 2, 3], height=[4, 5, 6])
    facts = scan_columns(table)
    assert facts.column("width").tolist() == [1, 3]
    assert facts.left_out == LeftOut({"@eaDir/": 1})
    assert len(scan_columns(table, ignore=())) == 3
    assert facts.origin == scan_columns(Table(width=[1], height=[2])).origin


def test_tables_and_shards_are_found_beside_trash(tmp_path: Path) -> None:
    fill(tmp_path, ("a.jpg", "b.jpg"))
    for name in ("tables/._t.csv", "tables/@eaDir/t.csv", "._s.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "tables/t.csv").write_text("file_name,width,height\na.jpg,64,64\n")
    for path in ("tables", "tables/*.csv", "**/t.csv"):
        assert keys(scan(LocalStorage(str(tmp_path)), metadata=ParquetTable(path))) == ["a.jpg"]
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(tmp_path / "b.jpg", "b.jpg")
    assert keys(scan(TarStorage(LocalStorage(str(tmp_path))))) == ["s.tar/b.jpg"]


def test_they_are_shown_and_remembered(tmp_path: Path) -> None:
    fill(tmp_path / "pics")
    for _ in range(2):  # measured, then opened as published
        with prepared(tmp_path) as data:
            lines = list(left_out_lines(data.sources.values()))
        ignored_files = len(TRASH) + len(DROPPED)
        assert lines[0].startswith(f"Left out of pics: {ignored_files} files ignored as ")
        assert "#recycle/ (1)" in lines[0]
        assert lines[1] == (
            "Left out of pics: 4 files of other formats: .cr2 (2), .mp4 (1), without suffix (1)"
        )
    summary = dry_run(tmp_path, one_backend(tmp_path, folder="pics"), batch_size=1).summary
    trash, formats = problems(summary, "left out:")
    assert "metadata.ignore" in trash.fix
    assert ".cr2 (2)" in formats.text


def test_where_nothing_else_lies_they_are_named(tmp_path: Path) -> None:
    fill(tmp_path, ("#recycle/r.jpg", "a.psd"))
    with pytest.raises(EmptyBackendError, match=r"1 file ignored as #recycle/.*\.psd \(1\)"):
        scan(LocalStorage(str(tmp_path)))


def test_catalogs_from_before_are_read(tmp_path: Path) -> None:
    fill(tmp_path / "p")
    shelf = FactsStore(LocalStorage(str(tmp_path)), "c.parquet", tmp_path / "c.arrow")
    facts = scan(LocalStorage(str(tmp_path)), "p")
    shelf.save(facts)
    loaded = shelf.load()
    assert loaded is not None
    assert loaded.left_out == facts.left_out
    assert LeftOut.from_dict(None) == LeftOut()


def test_the_schema_names_the_same() -> None:
    assert tuple(DiscoveryConfig().ignore) == tuple(ColumnsConfig().ignore) == IGNORED


PARTS = st.text("aA.@_#rReE$/\u00e9", min_size=1, max_size=4)


@given(
    st.lists(PARTS, max_size=12),
    st.lists(st.sampled_from(["*.a", "a/b", "re*", "[rR]e/", "\u00e9/", *IGNORED]), max_size=4),
    st.integers(0, 3),
)
def test_what_is_ignored_is_what_matches(names: list[str], patterns: list[str], cut: int) -> None:
    keys = pa.array(names, pa.large_string()).slice(cut)
    expected = matching(keys, patterns, ignore_case=True)
    assert (ignored(keys, patterns) == expected).all()
    chunked = pa.chunked_array([keys, keys])
    assert ignored(chunked, patterns).tolist() == [*expected, *expected]
