"""Index of a tar shard: members by name, kept for the next process."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from factory.errors import ContentMismatchError, StorageError
from factory.storage.checksummed_arrow import sealed, unsealed
from factory.storage.mapped_length import Extent
from factory.storage.tar.tar_headers import Members

if TYPE_CHECKING:
    import pyarrow as pa

# What a file starts with; the number is the format's version.
_MAGIC = b"factory tar index 1\n"
# Rows turned into Python objects together when listing.
_LISTED_ROWS = 10_000
_COLUMNS = ("name", "start", "size", "digest", "row")


class DamagedIndexError(StorageError):
    """A stored index that is not what was written."""


@dataclass(frozen=True)
class ShardId:
    """One state of a shard; an index belongs to exactly one.

    Attributes:
        storage: Identity of the storage it lies in.
        key: Its key there.
        etag: Changes whenever its content does.
        size: Bytes.
    """

    storage: str
    key: str
    etag: str
    size: int

    @property
    def file_name(self) -> str:
        """The name of its index: the same for all states, so that the newest replaces others."""
        return xxhash.xxh3_128_hexdigest(f"{self.storage}\0{self.key}".encode()) + ".arrow"


class MemberIndex:
    """The members of one shard in Arrow columns: about 40 bytes each, and the name.

    Attributes:
        problems: How many entries were left out for each reason, and the first one's name.
        extent: The file that the columns are mapped from, where they are.
    """

    def __init__(
        self,
        table: "pa.Table",
        problems: Mapping[str, tuple[int, str]],
        extent: Extent | None = None,
    ) -> None:
        """Keep the columns name, start, size [n, in the archive's order], digest and row.

        Args:
            table: digest uint64 [n] is ascending; row uint32 [n] is the member each is of.
            problems: What was left out.
            extent: The file that the columns are mapped from, where they are.
        """
        self._table = table.combine_chunks()
        self._names = self._column("name")
        self._start: NDArray[np.uint64] = self._column("start").to_numpy()
        self._size: NDArray[np.uint64] = self._column("size").to_numpy()
        self._digest: NDArray[np.uint64] = self._column("digest").to_numpy()
        self._row: NDArray[np.uint32] = self._column("row").to_numpy()
        self.problems = dict(problems)
        self.extent = extent

    def _look(self) -> None:
        """Make sure that the mapped file, where there is one, was not cut."""
        if self.extent is not None and self.extent.shrunk:
            raise DamagedIndexError(
                f"{self.extent.path} was cut while it was in use; start again: it is built anew"
            )

    def _column(self, name: str) -> Any:
        import pyarrow as pa

        column = self._table.column(name)
        return column.chunk(0) if column.num_chunks else pa.array([], column.type)

    @staticmethod
    def of(members: Members) -> "MemberIndex":
        """Return the index of what a walk over a shard found."""
        import pyarrow as pa

        names = list(members.places)
        places = np.array(list(members.places.values()), np.uint64).reshape(-1, 2)
        digests = np.array([_digest(name) for name in names], np.uint64)
        order = np.argsort(digests, kind="stable").astype(np.uint32)
        columns = [
            pa.array(names, pa.large_string()), pa.array(places[:, 0]), pa.array(places[:, 1]),
            pa.array(digests[order]), pa.array(order),
        ]  # fmt: skip
        return MemberIndex(pa.table(columns, names=list(_COLUMNS)), members.problems)

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self._names)

    @property
    def nbytes(self) -> int:
        """Bytes of memory, or of the file that is mapped."""
        return int(self._table.nbytes)

    def find(self, name: str) -> tuple[int, int] | None:
        """Return where a member's bytes start and how many they are; None if there is none."""
        self._look()
        digest = np.uint64(_digest(name))
        spot = int(np.searchsorted(self._digest, digest))
        while spot < len(self._digest) and self._digest[spot] == digest:
            row = int(self._row[spot])
            if self._names[row].as_py() == name:
                return int(self._start[row]), int(self._size[row])
            spot += 1
        return None

    def items(self) -> Iterator[tuple[str, int, int]]:
        """Yield every member's name, start and size, in the archive's order."""
        for at in range(0, len(self), _LISTED_ROWS):
            self._look()
            rows = slice(at, at + _LISTED_ROWS)
            names = self._names[rows].to_pylist()
            yield from zip(
                names, self._start[rows].tolist(), self._size[rows].tolist(), strict=True
            )

    def pack(self, shard: ShardId) -> bytes:
        """Return the index as a file of its own."""
        said = {"shard": vars(shard), "problems": self.problems}
        return sealed(_MAGIC, self._table.replace_schema_metadata({"factory": json.dumps(said)}))

    @staticmethod
    def unpack(
        data: "pa.Buffer", shard: ShardId, extent: Extent | None = None
    ) -> "MemberIndex | None":
        """Return the index in a file's bytes; None where it is of another state of the shard.

        Args:
            data: The bytes.
            shard: The state wanted.
            extent: The file they are mapped from, where they are.

        Raises:
            DamagedIndexError: The bytes are not what was written.
        """
        import pyarrow as pa

        try:
            table = unsealed(data, _MAGIC)
            said = json.loads(table.schema.metadata[b"factory"])
            if said["shard"] != vars(shard):
                return None
            problems = {why: (int(n), str(name)) for why, (n, name) in said["problems"].items()}
            found = MemberIndex(table.select(_COLUMNS), problems, extent)
        except (
            ContentMismatchError, pa.ArrowException, KeyError, TypeError, ValueError
        ) as error:  # fmt: skip
            raise DamagedIndexError(str(error)) from error
        found._refuse_strays(shard.size)
        return found

    def _refuse_strays(self, size: int) -> None:
        """Refuse rows that are not there and members that end behind the shard."""
        if not len(self):
            return
        inside = (self._start <= size) & (self._size <= size - np.minimum(self._start, size))
        if int(self._row.max()) >= len(self) or not inside.all():
            raise DamagedIndexError("points outside the shard")


def _digest(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode())
