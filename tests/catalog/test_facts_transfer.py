"""Do facts get to another cache where they are of use, and displace none that know more?"""

from pathlib import Path

import pytest

from factory.catalog.facts import Fact, Facts
from factory.catalog.facts_store import FactsStore
from factory.catalog.facts_transfer import TransferOutcome, compare_facts, copy_facts
from factory.storage import LocalStorage

BUCKET = "s3://team"


@pytest.fixture
def ends(tmp_path: Path) -> tuple[FactsStore, FactsStore]:
    """Where the facts of a backend lie in two caches."""
    return tuple(  # type: ignore[return-value]
        FactsStore(
            LocalStorage(str(tmp_path / name)), "cache/catalog/a.parquet", tmp_path / f"{name}.a"
        )
        for name in ("source", "target")
    )


def facts(*versions: str, storage: str = BUCKET, captions: str = "") -> Facts:
    """Return facts of samples 0 to n, of these versions."""
    origin = {"storage": storage, "prefix": "a", "captions": captions}
    rows = [Fact(f"{n:03}.png", 10, etag, 8, 8, "png") for n, etag in enumerate(versions)]
    return Facts.of([row for row in rows if row.etag], origin)


def test_facts_are_copied_where_there_are_none(ends: tuple[FactsStore, FactsStore]) -> None:
    source, target = ends
    assert compare_facts(source, target) is None
    source.save(facts("a", "b"))
    found = compare_facts(source, target, BUCKET)
    assert found is not None
    assert (found.verdict, found.samples) == (TransferOutcome.copied, 2)
    copy_facts(source, target)
    loaded = target.load()
    assert loaded is not None
    assert loaded.table.equals(facts("a", "b").table)
    assert loaded.origin == facts("a").origin
    for verify in (False, True):
        again = compare_facts(source, target, BUCKET, verify=verify)
        assert again is not None
        assert again.verdict is TransferOutcome.same


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (facts("a", "b", "c"), facts("a", "b"), TransferOutcome.copied),
        (facts("a", "b"), facts("a", "b", "c"), TransferOutcome.newer),
        (facts("a", "x"), facts("a", "b"), TransferOutcome.newer),  # who is right a scan will tell
        (facts("a", "x", "c"), facts("a", "b"), TransferOutcome.copied),
        (facts("a", captions="text"), facts("a"), TransferOutcome.newer),
        (facts("a", "b"), facts("a", storage="s3://other"), TransferOutcome.elsewhere),
        (facts("a", "b", storage="file:///home/me"), facts("a"), TransferOutcome.useless),
    ],
)
def test_what_becomes_of_facts(
    ends: tuple[FactsStore, FactsStore], ours: Facts, theirs: Facts, verdict: TransferOutcome
) -> None:
    source, target = ends
    source.save(ours)
    target.save(theirs)
    found = compare_facts(source, target, BUCKET, verify=True)
    assert found is not None
    assert found.verdict is verdict


def test_damaged_facts_are_not_copied_and_are_replaced(
    ends: tuple[FactsStore, FactsStore], tmp_path: Path
) -> None:
    source, target = ends
    for end in ends:
        end.save(facts("a", "b"))
    path = tmp_path / "target" / target.key
    path.write_bytes(path.read_bytes()[:-1])
    found = compare_facts(source, target)
    assert found is not None
    assert found.verdict is TransferOutcome.copied
    found = compare_facts(target, source)
    assert found is not None
    assert found.verdict is TransferOutcome.damaged
    assert "is damaged" in found.detail


def test_facts_of_equal_size_are_read_when_asked(
    ends: tuple[FactsStore, FactsStore], tmp_path: Path
) -> None:
    source, target = ends
    for end in ends:
        end.save(facts("a", "b"))
    path = tmp_path / "target" / target.key
    path.write_bytes(b"\0" * path.stat().st_size)
    found = [compare_facts(source, target, verify=verify) for verify in (False, True)]
    assert [each and each.verdict for each in found] == [
        TransferOutcome.same,
        TransferOutcome.copied,
    ]
