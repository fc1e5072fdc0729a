"""Large catalogs are cut into chunks: nothing that is asked of them shows where, or by whom."""

import pickle
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from factory.catalog.captions.sources import FilenameCaptions
from factory.catalog.catalog import Catalog
from factory.catalog.crops import OwnCrops
from factory.catalog.decisions import decide
from factory.catalog.facts import Fact, Facts
from factory.catalog.facts_store import FactsStore
from factory.media.geometry.geometry import Geometry
from factory.storage.local import LocalStorage
from tests.catalog.test_facts import shelf_in


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Cut tables after three rows."""
    for module in ("facts", "facts_store"):
        monkeypatch.setattr(f"factory.catalog.{module}.CHUNK_ROWS", 3)
    return 3


def many(count: int = 8) -> Facts:
    """Return facts whose texts take chunks of their own sizes in Parquet."""
    rows = [
        Fact(f"{n:03d}", n, "e", n + 1, 9, text=None if n % 3 else (f"{n}", ""), text_etag="t")
        for n in range(count)
    ]
    return Facts.of(rows, {"storage": "s"})


def test_all_that_is_asked_of_facts_is_the_same_in_chunks(small_chunks: int) -> None:
    whole, parts = Facts(many().table.combine_chunks()), many()
    assert parts.table["key"].num_chunks == 3
    marked, expected = (facts.with_errors({7: "x: y", 3: "z"}) for facts in (parts, whole))
    assert marked.table.equals(expected.table)
    assert marked.table["key"].chunk(1).buffers()[2].address == (
        parts.table["key"].chunk(1).buffers()[2].address
    )
    assert [fact.error for fact in marked.rows()] == [None] * 3 + ["z"] + [None] * 3 + ["x: y"]
    wide = parts.with_column("width", np.arange(8)[::-1])
    assert wide.take("width", [0, 7, 3]).tolist() == [7, 0, 4]
    assert wide.key(4) == "004"
    assert [first for first, _ in wide.chunks()] == [0, small_chunks, 2 * small_chunks]
    twins = Facts.of([*parts.rows(), *parts.rows()], {})
    assert len(twins) == 16
    assert [bool(fact.error) for fact in twins.rows()] == [False, True] * 8


def test_cells_of_many_rows_come_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.catalog.facts.CHUNK_ROWS", 3)
    facts = many()
    wanted = [7, 0, 3, 3, 5]
    expected = [facts.texts(name, wanted) for name in ("key", "text", "error")]
    monkeypatch.setattr("factory.catalog.facts.MANY_ROWS", 0)
    assert [facts.texts(name, wanted) for name in ("key", "text", "error")] == expected
    assert facts.texts("key", []) == []


def test_every_rank_sees_one_identity(small_chunks: int, tmp_path: Path) -> None:
    """In memory, mapped, read from Parquet where nothing can be mapped, and pickled."""
    shelf = shelf_in(tmp_path)
    facts = many()
    saved = shelf.save(facts)
    blocked = tmp_path / "no folder"
    blocked.write_text("")
    unmapped = FactsStore(shelf.storage, shelf.key, blocked / "a.arrow").load()
    assert unmapped is not None
    copied = pickle.loads(pickle.dumps(saved))
    assert copied.key(5) == "005"
    seen = [facts, saved, shelf.load(), unmapped, copied]
    identities = set()
    for one in seen:
        assert one is not None
        made = decide(one, Geometry(64), FilenameCaptions(), name="a")
        identities.add(Catalog(one, made, FilenameCaptions(), OwnCrops(one, Geometry(64))).identity)
        assert [len(rows) for _, rows in one.chunks()] == [3, 3, 2]
    assert len(identities) == 1


@dataclass(frozen=True)
class Overtaken(LocalStorage):
    """A folder where another process publishes right after a read, or after a write."""

    other: list[bytes] = field(default_factory=list, compare=False)

    def local_path(self, key: str) -> Path | None:
        """Read as from a server."""
        return None

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Read, then be overtaken."""
        found = super().read(key, start, length)
        self._overtake(key)
        return found

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Write, then be overtaken."""
        super().write(key, data)
        self._overtake(key)

    def _overtake(self, key: str) -> None:
        if self.other:
            super().write(key, self.other.pop())


def test_what_another_process_publishes_meanwhile_is_seen_next_time(tmp_path: Path) -> None:
    plain = FactsStore(LocalStorage(str(tmp_path)), "a.parquet", tmp_path / "other.arrow")
    plain.save(many(5))
    newer = (tmp_path / "a.parquet").read_bytes()
    plain.save(many(4))
    read_over = FactsStore(
        Overtaken(str(tmp_path), other=[newer]), "a.parquet", tmp_path / "m/1.arrow"
    )
    assert [len(read_over.load() or ()), len(read_over.load() or ())] == [4, 5]
    late = FactsStore(Overtaken(str(tmp_path), other=[newer]), "a.parquet", tmp_path / "m/2.arrow")
    assert [len(late.save(many(3))), len(late.load() or ())] == [3, 5]


def test_a_map_stays_whole_while_another_process_replaces_it(tmp_path: Path) -> None:
    shelf = shelf_in(tmp_path)
    before = shelf.save(many(7))
    shelf.save(many(2))
    assert [before.key(row) for row in range(7)] == [f"{n:03d}" for n in range(7)]
    assert [before.text(row) for row in (0, 1)] == [("0", ""), ()]
