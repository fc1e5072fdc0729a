"""Facts survive a round trip, and a damaged catalog is never taken for a sound one."""

import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.catalog import facts as facts_module
from factory.catalog import facts_store
from factory.catalog.facts import SCHEMA, Fact, Facts
from factory.catalog.facts_store import FactsStore
from factory.catalog.scan.facts_diff import Changes, compare
from factory.errors import CacheError
from factory.storage.local import LocalStorage
from factory.storage.memory import MemoryStorage
from tests.catalog.fakes import facts_of


def shelf_in(folder: Path) -> FactsStore:
    return FactsStore(LocalStorage(str(folder)), "a.parquet", folder / "mapped/a.arrow")


words = st.text(max_size=8)
rows = st.lists(
    st.builds(
        Fact,
        key=words,
        size=st.integers(-1, 2**62),
        etag=words,
        width=st.integers(0, 2**31 - 1),
        height=st.integers(0, 2**31 - 1),
        format=words,
        frames=st.integers(1, 1000),
        error=st.none() | words,
        text=st.none() | st.lists(words, max_size=3).map(tuple),
        text_etag=st.none() | words,
        text_error=st.none() | words,
    ),
    max_size=6,
    unique_by=lambda fact: fact.key,
)


@settings(deadline=None)  # the first example imports the reader
@given(rows)
def test_what_is_saved_is_loaded(given_rows: list[Fact]) -> None:
    facts = Facts.of(given_rows, {"prefix": "p"})
    with tempfile.TemporaryDirectory() as folder:
        shelf = FactsStore(
            MemoryStorage("round-trip"), "catalog/a.parquet", Path(folder) / "a.arrow"
        )
        check_round_trip(shelf, facts, given_rows)


def check_round_trip(shelf: FactsStore, facts: Facts, given_rows: list[Fact]) -> None:
    saved = shelf.save(facts)
    assert saved.table.equals(facts.table)
    loaded = shelf.load()
    assert loaded is not None
    assert loaded.rows() == facts.rows() == sorted(given_rows, key=lambda fact: fact.key)
    assert loaded.origin == {"prefix": "p"}
    assert loaded.table.schema == SCHEMA


def test_an_absent_catalog_is_none(tmp_path: Path) -> None:
    assert shelf_in(tmp_path).load() is None


def test_another_format_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_store, "FORMAT_VERSION", facts_store.FORMAT_VERSION + 1)
    shelf_in(tmp_path).save(facts_of((8, 8)))
    monkeypatch.undo()
    assert shelf_in(tmp_path).load() is None


ADVICE = r"catalog a\.parquet in file://.* is damaged \(.*\); delete it and start again: the sam"


def test_every_cut_is_found(tmp_path: Path) -> None:
    shelf_in(tmp_path).save(facts_of((8, 8), (9, 9)))
    whole = (tmp_path / "a.parquet").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "a.parquet").write_bytes(whole[:length])
        (tmp_path / "mapped/a.arrow").unlink(missing_ok=True)
        with pytest.raises(CacheError, match=ADVICE):
            shelf_in(tmp_path).load()


def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path: Path) -> None:
    facts = facts_of(*[(100 + n, 200 + n) for n in range(40)])
    shelf_in(tmp_path).save(facts)
    whole = (tmp_path / "a.parquet").read_bytes()
    # The pages; the footer has no checksum of its own in the format.
    pages = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    found = 0
    for at in range(4, pages, 3):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        (tmp_path / "a.parquet").write_bytes(data)
        (tmp_path / "mapped/a.arrow").unlink(missing_ok=True)
        try:
            loaded = shelf_in(tmp_path).load()
        except CacheError:
            found += 1
        else:
            assert loaded is None or loaded.rows() == facts.rows()
    assert found > pages / 3 / 2


@pytest.mark.parametrize(
    "header",
    [None, b"", b"[]", b"{}", b'{"format_version": 2}', b'{"format_version": 2, "origin": 3}'],
)
def test_a_parquet_file_that_is_no_catalog_is_damaged(tmp_path: Path, header: bytes | None) -> None:
    table = facts_of((8, 8)).table
    if header is not None:
        table = table.replace_schema_metadata({b"factory": header})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(CacheError, match=ADVICE):
        shelf_in(tmp_path).load()


def test_other_columns_under_our_header_are_damaged(tmp_path: Path) -> None:
    header = json.dumps({"format_version": facts_store.FORMAT_VERSION, "origin": {}})
    table = pa.table({"key": ["a"]}).replace_schema_metadata({b"factory": header.encode()})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(CacheError, match=ADVICE):
        shelf_in(tmp_path).load()


def test_errors_are_marked_in_place() -> None:
    facts = facts_of((8, 8), (9, 9))
    marked = facts.with_errors({1: "damaged: its bits"})
    assert [fact.error for fact in marked.rows()] == [None, "damaged: its bits"]
    assert [fact.error for fact in facts.rows()] == [None, None]
    assert marked.table.schema == SCHEMA
    assert marked.column("width").tolist() == [8, 9]


def test_changes_say_what_a_refresh_found() -> None:
    known = Facts.of([Fact(key, 1, "e") for key in ("same", "gone", "new bytes")], {})
    now = [Fact("same", 1, "e"), Fact("new bytes", 1, "f", error="x"), Fact("added", 1, "e")]
    changes = Facts.of(now, {}, known).changes
    assert changes == Changes(added=1, changed=1, removed=1, unchanged=1, unreadable=1)
    assert str(changes) == "1 added, 1 changed, 1 removed, 1 unchanged, 1 unreadable"
    assert str(Changes(added=2)) == "2 added"
    assert str(Changes()) == "nothing found"


def test_the_mapped_file_is_used_only_if_it_belongs_to_what_is_published(tmp_path: Path) -> None:
    shelf = shelf_in(tmp_path)
    shelf.save(facts_of((8, 8)))
    other = FactsStore(LocalStorage(str(tmp_path)), "b.parquet", shelf.mapped)
    other.save(facts_of((9, 9), (7, 7)))
    loaded = shelf.load()
    assert loaded is not None
    assert loaded.column("width").tolist() == [8]


@pytest.mark.parametrize("length", [0, 10, 300, -1])
def test_a_damaged_mapped_file_is_made_anew(tmp_path: Path, length: int) -> None:
    shelf = shelf_in(tmp_path)
    shelf.save(facts_of((8, 8)))
    whole = shelf.mapped.read_bytes()
    shelf.mapped.write_bytes(whole[:length])
    loaded = shelf.load()
    assert loaded is not None
    assert loaded.column("width").tolist() == [8]
    assert facts_store.open_sealed(shelf.mapped, facts_store._MAPPED)[0]["width"].to_pylist() == [8]


def test_facts_stay_in_memory_where_no_file_can_be_mapped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mapped").write_text("a file where a folder should be")
    shelf = shelf_in(tmp_path)
    assert shelf.save(facts_of((8, 8))).column("width").tolist() == [8]
    assert "cannot be written" in caplog.text
    loaded = shelf.load()
    assert loaded is not None
    assert loaded.column("width").tolist() == [8]


def test_columns_of_a_backends_own_are_kept(tmp_path: Path) -> None:
    table = facts_of((8, 8)).table.append_column("column.score", pa.array([0.5]))
    shelf = shelf_in(tmp_path)
    shelf.save(Facts.of_table(table, {}))
    loaded = shelf.load()
    assert loaded is not None
    assert loaded.extra == ["column.score"]
    assert loaded.table["column.score"].to_pylist() == [0.5]


def test_further_rows_of_a_key_are_marked() -> None:
    rows = [Fact("b", 1, "e", 8, 8), Fact("a", 1, "e", 9, 9), Fact("b", 1, "f", 7, 7)]
    facts = Facts.of(rows, {})
    assert [fact.key.partition("\0")[0] for fact in facts.rows()] == ["a", "b", "b"]
    assert len({fact.key for fact in facts.rows()}) == 3
    assert [bool(fact.error) for fact in facts.rows()] == [False, False, True]
    assert (facts.rows()[2].error or "").startswith("duplicate row: b ")


def test_renamed_samples_with_equal_etags_are_told_apart() -> None:
    known = Facts.of([Fact("a", 1, "x"), Fact("b", 1, "y")], {})
    now = Facts.of([Fact("b", 1, "x"), Fact("c", 1, "y")], {})
    assert compare(known.table, now.table) == Changes(added=1, changed=1, removed=1)


def test_further_rows_of_a_key_keep_their_names_when_others_come() -> None:
    rows = [Fact("b", 1, "e"), Fact("b", 1, "e"), Fact("b", 1, "e")]
    known = Facts.of(rows, {})
    now = Facts.of([Fact("a", 1, "e"), *rows], {}, known)
    assert (now.changes.added, now.changes.unchanged, now.changes.removed) == (1, 3, 0)
    assert [now.key(row) for row in range(4)] == ["a", "b", "b", "b"]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_numbers_that_are_none_do_not_make_equal_scans_differ(kind: pa.DataType) -> None:
    score = pa.array([float("nan"), 0.5], kind)
    one, two = (
        Facts.of_table(facts_of((8, 8), (9, 9)).table.append_column("column.score", score), {})
        for _ in range(2)
    )
    assert one.table.equals(two.table)
    assert one.table["column.score"].to_pylist() == [None, 0.5]
    assert one.table.schema.field("column.score").type == kind


KEYS = ["a/1.png", "a/10.png", "a/2.png", "b/ä.png", "b/z.png", "b/日本.png"]


def facts(keys: list[str]) -> Facts:
    return Facts.of([Fact(key, 1, "e") for key in keys], {})


@given(st.sets(st.text(st.characters(exclude_categories=["Cs"], min_codepoint=1), min_size=1)))
def test_every_key_is_found_and_no_other(keys) -> None:
    known = facts(sorted(keys))
    for key in keys:
        row = facts_module.row_of(known, key)
        assert row is not None
        assert known.key(row) == key
        assert facts_module.row_of(known, key + "\x01x") is None or key + "\x01x" in keys


def test_a_key_that_stands_there_twice_is_its_first_row() -> None:
    known = facts(["a", "b", "b", "b", "c"])
    assert [facts_module.row_of(known, key) for key in "abc"] == [0, 1, 4]
    assert facts_module.row_of(known, "b\x001") is None


def test_near_keys_end_with_it_or_look_like_it() -> None:
    assert facts_module.near(facts(KEYS), "z.png")[0] == "b/z.png"
    assert "a/10.png" in facts_module.near(facts(KEYS), "a/11.png")
    assert facts_module.near(facts(KEYS), "nothing of the kind at all") == []


def test_in_large_catalogs_the_neighbours_are_compared(monkeypatch) -> None:
    monkeypatch.setattr(facts_module, "COMPARED", 10)
    known = facts([f"sets/{n:05d}.png" for n in range(3000)])
    assert facts_module.near(known, "sets/01234.pgn")[0] in {"sets/01234.png", "sets/01233.png"}
