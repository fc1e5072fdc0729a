"""Storage of facts: published as Parquet, used through a memory-mapped Arrow file.

Parquet is the exchange format: compressed, checked page by page, written to the cache's storage
in one piece. From it follows, once on each machine, an uncompressed Arrow file that opens in
milliseconds whatever its size: a large one is compared with its checksum once, not at each opening.
Losing the Arrow file loses nothing.
"""

import io
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from factory.catalog.arrow_columns import add_to_hash
from factory.catalog.facts import CHUNK_ROWS, SCHEMA, Facts, evenly_chunked
from factory.catalog.left_out import LeftOut
from factory.errors import CacheError, ContentMismatchError, ObjectNotFoundError
from factory.storage.base import Storage
from factory.storage.checksummed_arrow import open_sealed, write_sealed
from factory.storage.mapped_length import Extent

logger = logging.getLogger(__name__)

# Raised when a column changes its meaning; a catalog of another version is measured anew.
FORMAT_VERSION = 2
_HEADER = b"factory"
_MAPPED = b"factory catalog 1\n"


@dataclass(frozen=True)
class FactsStore:
    """Where the facts of one backend are kept.

    Attributes:
        storage: The cache's storage.
        key: Key of the Parquet object.
        mapped: The Arrow file on this machine.
    """

    storage: Storage
    key: str
    mapped: Path

    def save(self, facts: Facts) -> Facts:
        """Publish facts whole or not at all, and return them as a memory map.

        Raises:
            StorageError: The storage does not take them.
        """
        header = {
            "format_version": FORMAT_VERSION,
            "origin": facts.origin,
            "rows": len(facts),
            "checksum": checksum(facts.table),
            "left_out": facts.left_out.to_dict(),
            "readers": facts.readers,
        }
        data = _parquet(facts.table, header)
        self.storage.write(self.key, data)
        found = self.storage.head(self.key)
        # Of another size it is another process's, written since: no etag is ours then.
        etag = found.etag if found.size == len(data) else ""
        table, extent = self._map(facts.table, header, etag)
        return replace(facts, table=table, extent=extent)

    def load(self) -> Facts | None:
        """Open published facts; None if there are none of this format.

        Raises:
            CacheError: They are there but damaged.
        """
        try:
            etag = self.storage.head(self.key).etag
        except ObjectNotFoundError:
            return None
        mapped = self._opened(etag)
        if mapped is not None:
            return mapped
        found = self._read()
        if found is None:
            return None
        table, header = found
        # The etag from before the reading: of what is published meanwhile it is not the one.
        table, extent = self._map(table, header, etag)
        return _facts(table, header, extent)

    def published(self) -> Facts | None:
        """Read published facts whole, leaving no Arrow file; None if there are none, as `load`.

        Raises:
            CacheError: They are there but damaged.
        """
        if not self.storage.exists(self.key):
            return None
        found = self._read()
        return None if found is None else _facts(*found)

    def _read(self) -> tuple[pa.Table, Mapping[str, Any]] | None:
        try:
            with self._source() as source:
                file = pq.ParquetFile(source, page_checksum_verification=True)
                header = json.loads((file.schema_arrow.metadata or {})[_HEADER])
                if header["format_version"] != FORMAT_VERSION:
                    return None
                table = evenly_chunked(_typed(file.read()))
            _check(table, header)
        except ObjectNotFoundError:
            return None
        except (pa.ArrowException, KeyError, OSError, TypeError, ValueError) as error:
            raise CacheError(
                f"catalog {self.key} in {self.storage.identity} is damaged ({error}); "
                "delete it and start again: the samples are then measured anew"
            ) from error
        return table, header

    def _source(self) -> Any:
        path = self.storage.local_path(self.key)
        if path is not None:
            return pa.OSFile(str(path))  # not mapped: it may be cut while it is read
        return pa.BufferReader(self.storage.read(self.key))

    def _opened(self, etag: str) -> Facts | None:
        """Open the Arrow file if it was made from the Parquet object of this etag."""
        try:
            table, extent = open_sealed(self.mapped, _MAPPED)
            header = json.loads((table.schema.metadata or {})[_HEADER])
            expected = (FORMAT_VERSION, etag, len(table))
            if (header["format_version"], header["parquet"], header["rows"]) != expected:
                return None
            return _facts(_typed(table), header, extent)
        except (
            ContentMismatchError, pa.ArrowException, KeyError, OSError, TypeError, ValueError
        ):  # fmt: skip
            return None  # absent, of another format or damaged: made anew from Parquet

    def _map(
        self, table: pa.Table, header: Mapping[str, Any], etag: str
    ) -> tuple[pa.Table, Extent | None]:
        """Write the Arrow file and open it; return the table itself where that fails."""
        try:
            write_mapped(self.mapped, table.schema, table.to_batches(CHUNK_ROWS), header, etag)
            opened, extent = open_sealed(self.mapped, _MAPPED)
            return _typed(opened), extent
        except (ContentMismatchError, OSError, pa.ArrowException) as error:
            logger.warning(
                "%s cannot be written (%s): the facts of %s stay in memory, in every process",
                self.mapped, error, self.key,
            )  # fmt: skip
            return table, None


def write_mapped(
    path: Path,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    header: Mapping[str, Any],
    etag: str,
) -> None:
    """Write the Arrow file of a Parquet object.

    Args:
        path: Where it lies.
        schema: Columns of the rows.
        batches: The rows.
        header: What the Parquet object says of itself.
        etag: The object's etag.

    Raises:
        OSError: It cannot be written.
    """
    text = json.dumps({**header, "parquet": etag}).encode()
    write_sealed(path, _MAPPED, schema.with_metadata({_HEADER: text}), batches)


def _facts(table: pa.Table, header: Mapping[str, Any], extent: Extent | None = None) -> Facts:
    left_out = LeftOut.from_dict(header.get("left_out"))
    readers = int(header.get("readers", 1))
    return Facts(table, dict(header["origin"]), extent=extent, left_out=left_out, readers=readers)


def _check(table: pa.Table, header: Mapping[str, Any]) -> None:
    dict(header["origin"])
    if len(table) != header["rows"] or checksum(table) != header["checksum"]:
        raise ValueError("its rows do not match its checksum")


def checksum(table: pa.Table) -> str:
    """Return a hash of the rows of `SCHEMA`, 16 hex digits; the same however they are chunked.

    The columns beyond are left to Parquet's own checksums.
    """
    state = xxhash.xxh3_64()
    for at in range(0, table.num_rows, CHUNK_ROWS):
        for name in SCHEMA.names:
            add_to_hash(state, table[name].slice(at, CHUNK_ROWS).combine_chunks())
    return state.hexdigest()


def _typed(table: pa.Table) -> pa.Table:
    """Return the columns of `SCHEMA` in their order, then those of the backend's own.

    Raises:
        KeyError: A column is absent.
        ArrowInvalid: A column is of another type.
    """
    table = table.replace_schema_metadata(None)
    extra = [name for name in table.column_names if name not in SCHEMA.names]
    fields = [*SCHEMA, *(table.schema.field(name) for name in extra)]
    ordered = table.select([field.name for field in fields])
    return ordered if ordered.schema.equals(pa.schema(fields)) else ordered.cast(pa.schema(fields))


def _parquet(table: pa.Table, header: Mapping[str, Any]) -> memoryview:
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({_HEADER: json.dumps(header).encode()}),
        sink,
        compression="zstd",
        row_group_size=CHUNK_ROWS,
        # Page checksums: a flipped bit would otherwise read as another size or another name.
        write_page_checksum=True,
    )
    return sink.getbuffer()
