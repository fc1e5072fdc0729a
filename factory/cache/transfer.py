"""How do encoded rows get from one cache to another?"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from factory.cache.container import DamagedError
from factory.cache.segment import ShardRecord
from factory.cache.store import TensorStore
from factory.errors import ObjectNotFoundError
from factory.telemetry import progress

# Shards under way at once: each lies in memory whole, 256 MiB by default.
_SIDE_BY_SIDE = 2


@dataclass
class Transfer:
    """What is copied, or was.

    Attributes:
        pieces: Pieces of the index, each with the shards that are not there yet.
        shards: Shards copied so far.
        nbytes: Their bytes.
        problems: What was left out, a sentence each.
    """

    pieces: list[tuple[str, list[ShardRecord]]] = field(default_factory=list)
    shards: int = 0
    nbytes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[ShardRecord]:
        """The shards that are to be copied, each once."""
        return list({each.name: each for _, records in self.pieces for each in records}.values())


def compare(source: TensorStore, target: TensorStore) -> Transfer:
    """Return what one store holds that another one lacks.

    Both are shards and pieces of an index under names that never come again, so that names
    and sizes tell.

    Raises:
        CacheError: A store was written in a newer format.
        StorageError: A store cannot be listed or read.
    """
    source.refresh()
    there = target.index_files.listed()
    sizes = {name: info.size for name, info in target.shard_files.listed().items()}
    unread = sorted(source.snapshot().unread)
    transfer = Transfer(
        problems=[f"{source.index_files.where(name)} is damaged; not copied" for name in unread]
    )
    for name, records in pieces(source):
        lacking = [each for each in records if sizes.get(each.name) != each.size]
        if lacking or name not in there:
            transfer.pieces.append((name, lacking))
    return transfer


def copy(source: TensorStore, target: TensorStore, transfer: Transfer) -> None:
    """Copy what `compare` found; a copy that was stopped goes on where it was.

    A shard is copied before the piece of the index that lists it, so that whoever reads the
    target meanwhile, or after a kill, finds every row that it lists.

    Raises:
        StorageError: The target cannot be written to, or the source does not answer.
    """
    with progress("copy shards", len(transfer.missing), "shards") as advance:

        def one(record: ShardRecord) -> bool:
            """Copy a shard; False if it is not what its index says."""
            try:
                data = source.shard_files.published(record.name, record.size)
            except (DamagedError, ObjectNotFoundError) as error:
                transfer.problems.append(f"{error}; not copied")
                return False
            files = target.shard_files
            files.storage.write(files.key(record.name), data)
            advance(1)
            return True

        missing = transfer.missing
        with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
            # All at once, for most pieces list a single shard.
            under_way = {each.name: pool.submit(one, each) for each in missing}
            try:
                for name, lacking in transfer.pieces:
                    if all(under_way[each.name].result() for each in lacking):
                        _publish(source, target, name)
            finally:
                pool.shutdown(cancel_futures=True)  # after a failure nothing more is begun
        copied = [each for each in missing if under_way[each.name].result()]
        transfer.shards += len(copied)
        transfer.nbytes += sum(each.size for each in copied)


def pieces(store: TensorStore) -> list[tuple[str, list[ShardRecord]]]:
    """Return the pieces of a store's index in their order, each with the shards it lists."""
    # A piece has several origins in one shard where rows of several stamps were merged.
    found: dict[str, dict[str, ShardRecord]] = {}
    for origin in store.snapshot().origins:
        listed = found.setdefault(origin.segment, {})
        if origin.shard is not None:
            listed[origin.shard.name] = origin.shard
    return [(name, list(listed.values())) for name, listed in sorted(found.items())]


def _publish(source: TensorStore, target: TensorStore, name: str) -> None:
    files = target.index_files
    files.storage.write(files.key(name), source.index_files.published(name))
