"""Transfer of facts between caches, so that the same samples are not measured again.

Facts are what a scan starts from: it lists the samples and measures those whose version is not
among them. So facts are of use wherever the same samples are read under the same name, such as
a team's bucket, and of none where they lie elsewhere. They are copied whole or not at all.
"""

from dataclasses import dataclass
from enum import StrEnum

from factory.catalog.arrow_columns import find
from factory.catalog.facts import Facts
from factory.catalog.facts_store import FactsStore
from factory.catalog.scan.facts_diff import same_etag
from factory.errors import CacheError, ObjectNotFoundError


class TransferOutcome(StrEnum):
    """What becomes of the facts of a backend."""

    copied = "copied"
    same = "there already"
    newer = "left alone: those there know as much or more"
    elsewhere = "left alone: those there are of other samples"
    useless = "not copied: they are of other samples than this config reads"
    damaged = "not copied: damaged"


@dataclass(frozen=True)
class FactsTransfer:
    """What becomes, or became, of the facts of one backend.

    Attributes:
        verdict: That.
        samples: How many samples they know; None where they were not read.
        detail: Where samples are read that are others, or what is damaged; "" for nothing.
    """

    verdict: TransferOutcome
    samples: int | None = None
    detail: str = ""


def compare_facts(
    source: FactsStore, target: FactsStore, wanted: str | None = None, *, verify: bool = False
) -> FactsTransfer | None:
    """Tell what is to become of the facts of a backend; None if the source has none.

    Args:
        source: Where they are copied from.
        target: Where they are copied to.
        wanted: The storage that the backend reads at the target; None if that is not known.
        verify: Read them also where both ends have as many bytes of them.

    Raises:
        StorageError: One of the storages cannot be read.
    """
    sizes = _size(source), _size(target)
    if sizes[0] is None:
        return None
    if sizes[0] == sizes[1] and not verify:
        return FactsTransfer(TransferOutcome.same)
    try:
        ours = source.published()
    except CacheError as error:
        return FactsTransfer(TransferOutcome.damaged, detail=str(error))
    if ours is None:
        return None
    measured = str(ours.origin.get("storage"))
    if wanted is not None and measured != wanted:
        return FactsTransfer(TransferOutcome.useless, len(ours), measured)
    try:
        theirs = target.published()
    except CacheError:
        theirs = None  # damaged: these take their place
    return FactsTransfer(_verdict(ours, theirs), len(ours), measured)


def copy_facts(source: FactsStore, target: FactsStore) -> None:
    """Publish the facts of one cache in another, as they are.

    Raises:
        StorageError: The target cannot be written to, or the source cannot be read.
    """
    target.storage.write(target.key, source.storage.read(source.key))


def _size(store: FactsStore) -> int | None:
    """Return the bytes of published facts; None if there are none."""
    try:
        return store.storage.head(store.key).size
    except ObjectNotFoundError:
        return None


def _verdict(ours: Facts, theirs: Facts | None) -> TransferOutcome:
    if theirs is None:
        return TransferOutcome.copied
    if (ours.origin.get("storage"), ours.origin.get("prefix")) != (
        theirs.origin.get("storage"),
        theirs.origin.get("prefix"),
    ):
        return TransferOutcome.elsewhere
    if ours.origin == theirs.origin and ours.table.equals(theirs.table):
        return TransferOutcome.same
    # How many samples each end has measured that the other has not, or not in this version.
    shared = int(
        same_etag(ours.table, theirs.table, find(ours.table["key"], theirs.table["key"])).sum()
    )
    return (
        TransferOutcome.copied
        if len(ours) - shared > len(theirs) - shared
        else TransferOutcome.newer
    )
