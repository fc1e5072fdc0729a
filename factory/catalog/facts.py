"""What was measured once about each sample of a backend, and how it is kept."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from factory.errors import CacheError, ObjectNotFoundError
from factory.storage.base import Storage

# Raised when a column changes its meaning; a catalog of another version is measured anew.
FORMAT_VERSION = 1

SCHEMA = pa.schema(
    [
        # large_string: a column of 32-bit offsets overflows at 2 GB of names.
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        # Why the sample cannot be used, "reason: detail"; null where it can.
        pa.field("error", pa.string()),
        # Raw caption texts, as the caption source gave them; null where there are none.
        pa.field("text", pa.list_(pa.string())),
        pa.field("text_etag", pa.string()),
        # Why the caption cannot be used, "reason: detail".
        pa.field("text_error", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Fact:
    """One row of the catalog; fields as in `SCHEMA`."""

    key: str
    size: int
    etag: str
    width: int = 0
    height: int = 0
    format: str = ""
    frames: int = 1
    error: str | None = None
    text: tuple[str, ...] | None = None
    text_etag: str | None = None
    text_error: str | None = None


# Reason of facts that are measured again at the next scan: the object may be back.
TRANSIENT = "not readable"


def is_transient(fact: Fact) -> bool:
    """Tell whether a fact's error may pass, so that the sample is to be tried again."""
    return fact.error is not None and fact.error.startswith(TRANSIENT)


@dataclass(frozen=True)
class Changes:
    """What a refresh found, in samples."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    unreadable: int = 0

    @classmethod
    def between(cls, known: Mapping[str, Fact], now: Sequence[Fact]) -> "Changes":
        """Compare the facts of two scans, by key and etag."""
        facts = {fact.key: fact for fact in now}
        shared = facts.keys() & known.keys()
        changed = sum(facts[key].etag != known[key].etag for key in shared)
        return cls(
            added=len(facts.keys() - known.keys()),
            changed=changed,
            removed=len(known.keys() - facts.keys()),
            unchanged=len(shared) - changed,
            unreadable=sum(fact.error is not None for fact in now),
        )

    def __str__(self) -> str:
        """Return "3 added, 1 removed, 120 unchanged", leaving out zeros."""
        parts = [f"{count} {name}" for name, count in vars(self).items() if count]
        return ", ".join(parts) or "nothing found"


@dataclass
class Facts:
    """The facts of one backend, sorted by key.

    Attributes:
        table: Rows of `SCHEMA`.
        origin: What the facts were measured from (storage, prefix, metadata settings,
            caption source); facts of another origin are not reused.
        changes: What the refresh that made them found.
    """

    table: pa.Table
    origin: dict[str, Any] = field(default_factory=dict)
    changes: Changes = field(default_factory=Changes)

    @classmethod
    def of(cls, rows: Iterable[Fact], origin: dict[str, Any], known: Mapping[str, Fact]) -> "Facts":
        """Build the table from rows in any order, and compare it with what was known."""
        ordered = sorted(rows, key=lambda fact: fact.key)
        columns = {name: [getattr(fact, name) for fact in ordered] for name in SCHEMA.names}
        table = pa.table(columns, schema=SCHEMA)
        return cls(table, origin, Changes.between(known, ordered))

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.table.num_rows)

    def column(self, name: str) -> NDArray[Any]:
        """Return a numeric column as an array of its own type."""
        return np.asarray(self.table[name].to_numpy())

    def key(self, row: int) -> str:
        """Return the storage key of a row."""
        return str(self.table["key"][row].as_py())

    def text(self, row: int) -> tuple[str, ...]:
        """Return the raw caption texts of a row."""
        return tuple(self.table["text"][row].as_py() or ())

    def rows(self) -> list[Fact]:
        """Return every row as a `Fact`."""
        return [
            Fact(**{**row, "text": None if row["text"] is None else tuple(row["text"])})
            for row in self.table.to_pylist()
        ]

    def with_errors(self, errors: dict[int, str]) -> "Facts":
        """Return the same facts with some rows marked unusable."""
        column = self.table["error"].to_pylist()
        for row, reason in errors.items():
            column[row] = reason
        index = self.table.schema.get_field_index("error")
        table = self.table.set_column(index, SCHEMA.field("error"), pa.array(column, pa.string()))
        return Facts(table, self.origin, self.changes)

    def with_column(self, name: str, values: NDArray[Any]) -> "Facts":
        """Return the same facts with other values in a numeric column."""
        index = self.table.schema.get_field_index(name)
        field_ = self.table.schema.field(index)
        table = self.table.set_column(index, field_, pa.array(values, field_.type))
        return Facts(table, self.origin, self.changes)

    def save(self, storage: Storage, key: str) -> None:
        """Publish the facts as one Parquet object, whole or not at all."""
        header = {"format_version": FORMAT_VERSION, "origin": self.origin, "rows": len(self)}
        table = self.table.replace_schema_metadata({b"factory": json.dumps(header).encode()})
        sink = io.BytesIO()
        # Page checksums: a flipped bit would otherwise read as another size or another name.
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        storage.write(key, sink.getvalue())

    @classmethod
    def load(cls, storage: Storage, key: str) -> "Facts | None":
        """Read published facts; None if there are none of this format.

        Raises:
            CacheError: The object is there but damaged.
        """
        try:
            data = storage.read(key)
        except ObjectNotFoundError:
            return None
        try:
            table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
            header = json.loads((table.schema.metadata or {})[b"factory"])
            if header["format_version"] != FORMAT_VERSION:
                return None
            return cls(table.replace_schema_metadata(None).cast(SCHEMA), dict(header["origin"]))
        except (pa.ArrowException, KeyError, OSError, TypeError, ValueError) as error:
            raise CacheError(
                f"catalog {key} in {storage.identity} is damaged ({error}); "
                "delete it and start again: the samples are then measured anew"
            ) from error
