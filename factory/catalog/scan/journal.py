"""Journal of an unfinished scan, from which a killed scan continues."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from factory.errors import ContentMismatchError, ObjectNotFoundError, StorageError
from factory.storage.base import Storage
from factory.storage.checksummed_arrow import sealed, unsealed

# Seconds of work that a kill may cost. A part holds what was measured in between, so a scan of
# an hour writes some hundred and twenty of them.
EVERY_S = 30.0
_HEADER = b"factory"
_PART = b"factory scan 1\n"


@dataclass
class Journal:
    """Parts of an unfinished scan, one object each.

    Attributes:
        storage: The cache's storage.
        folder: Where the parts lie.
        origin: What the rows are measured from; parts of another origin are left out.
        every_s: Seconds between two parts.
    """

    storage: Storage
    folder: str
    origin: Mapping[str, Any] = field(default_factory=dict)
    every_s: float = EVERY_S
    _waiting: list[pa.Table] = field(default_factory=list, repr=False)
    _written: int = 0
    _last: float = field(default_factory=time.monotonic, repr=False)

    def read(self) -> pa.Table | None:
        """Return every row that an earlier scan of the same origin left; None without any."""
        parts = [self._part(key) for key in self._keys()]
        self._written = len(parts)
        found = [part for part in parts if part is not None]
        return pa.concat_tables(found) if found else None

    def add(self, rows: pa.Table) -> None:
        """Keep measured rows; a part is written when enough time has passed.

        A cache that takes no part does not stop the scan: publishing says what is wrong.
        """
        self._waiting.append(rows)
        now = time.monotonic()
        if now - self._last < self.every_s:
            return
        self._last = now
        table = pa.concat_tables(self._waiting)
        self._waiting = []
        try:
            self.storage.write(f"{self.folder}/{self._written:06d}.arrow", self._bytes(table))
        except StorageError:
            return
        self._written += 1

    def clear(self) -> None:
        """Remove the parts: the scan is published."""
        for key in self._keys():
            self.storage.delete(key)
        self._waiting = []

    def _keys(self) -> list[str]:
        try:
            return sorted(info.key for info in self.storage.objects(self.folder))
        except ObjectNotFoundError:
            return []

    def _bytes(self, table: pa.Table) -> bytes:
        header = {_HEADER: json.dumps(dict(self.origin), sort_keys=True).encode()}
        return sealed(_PART, table.replace_schema_metadata(header))

    def _part(self, key: str) -> pa.Table | None:
        try:
            table = unsealed(pa.py_buffer(self.storage.read(key)), _PART)
            header = json.loads((table.schema.metadata or {})[_HEADER])
        except (ContentMismatchError, pa.ArrowException, KeyError, OSError, ValueError):
            return None  # cut off, or not ours: its files are measured again
        same = header == json.loads(json.dumps(dict(self.origin)))
        return table.replace_schema_metadata(None) if same else None
