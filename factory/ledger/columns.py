"""File format of the ledger: its columns, header and file names.

A file is an Arrow IPC stream, one row a micro-batch; record batches are appended whole, each with
a checksum (see `messages`), so that one cut off at its end is readable up to the last whole one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa

from factory.errors import CacheError

# Raised when a reader of before could not make sense of a file.
VERSION = 1
SUFFIX = ".arrows"
_ABOUT = b"factory.ledger"

REPLACED = pa.struct(
    [
        pa.field("place", pa.int32()),
        pa.field("row", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("stage", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("substitute", pa.int64()),
        pa.field("substitute_key", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("global_step", pa.int64(), nullable=False),  # all steps count from 0
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("step", pa.int32(), nullable=False),
        pa.field("micro", pa.int16(), nullable=False),
        pa.field("backend", pa.string(), nullable=False),
        pa.field("bucket", pa.string(), nullable=False),
        # 64 bits, since numbers in a stream have no end; compression takes the zeros away.
        pa.field("rows", pa.list_(pa.int64()), nullable=False),
        # Of streams only, whose rows say nothing by themselves.
        pa.field("keys", pa.list_(pa.string())),
        pa.field("replaced", pa.list_(REPLACED)),
    ]
)


@dataclass(frozen=True)
class LedgerHeader:
    """What one file's steps are steps of.

    Attributes:
        rank: The process that wrote it, from 0.
        ranks: Number of processes.
        micros: Micro-batches of an optimizer step.
        context_parallel: Consecutive ranks that work on the same samples.
        fingerprint: Fingerprint of the plan.
        seed: Seed of the plan.
        identities: What each backend's rows stand for, by its name.
        streams: Names of the backends whose keys are recorded.
        started: When the file was begun, nanoseconds since 1970; of two that hold a step, the
            later one counts.
    """

    rank: int = 0
    ranks: int = 1
    micros: int = 1
    fingerprint: str = ""
    seed: int = 0
    identities: Mapping[str, str] = field(default_factory=dict)
    streams: tuple[str, ...] = ()
    started: int = 0
    context_parallel: int = 1

    @property
    def shares(self) -> int:
        """How many shares a batch is cut into, before it is cut into micro-batches."""
        return self.ranks // self.context_parallel

    def schema(self) -> pa.Schema:
        """Return the schema of a file, with this in its metadata."""
        text = json.dumps({"version": VERSION, **asdict(self)})
        return SCHEMA.with_metadata({_ABOUT: text.encode()})

    @classmethod
    def of(cls, schema: pa.Schema, file: Path) -> "LedgerHeader":
        """Return what a file's schema says.

        Raises:
            CacheError: It is of no ledger, or of a later version than is known here.
        """
        text = (schema.metadata or {}).get(_ABOUT)
        if text is None:
            raise CacheError(f"{file} is no file of a ledger; move it out of the folder")
        try:
            values = json.loads(text)
            version = values.pop("version", None)
        except (ValueError, AttributeError, RecursionError) as error:
            raise _damaged(file) from error
        if version != VERSION:
            raise CacheError(
                f"{file} has version {version} of the ledger's format, and version {VERSION} is "
                "known here; read it with the release that wrote it"
            )
        try:
            found = cls(**{**values, "streams": tuple(values["streams"])})
        except (KeyError, TypeError) as error:
            raise _damaged(file) from error
        numbers = (found.rank, found.ranks, found.micros, found.context_parallel, found.started)
        if not schema.equals(SCHEMA) or not all(type(n) is int and n >= 0 for n in numbers):
            raise _damaged(file)
        if not found.ranks >= found.context_parallel > 0 or found.rank >= found.ranks:
            raise _damaged(file)
        return found


def _damaged(file: Path) -> CacheError:
    return CacheError(f"{file} is damaged: what it says of itself; move it out of the folder")


def file_name(first_step: int, about: LedgerHeader, attempt: int) -> str:
    """Return a file's name; steps count from 1 in it, as people count.

    Args:
        first_step: The first global step it holds, from 0.
        about: Who writes it.
        attempt: How many files of that name there are already.
    """
    again = f"-again{attempt}" if attempt else ""
    who = f"rank{about.rank:05d}-of-{about.ranks:05d}"
    return f"step{first_step + 1:09d}-{who}{again}{SUFFIX}"
