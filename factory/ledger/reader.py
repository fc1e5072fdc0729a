"""Reader of ledgers: what each step of a run used."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from factory.errors import CacheError
from factory.ledger.file_format import (
    SUFFIX,
    DamagedMessageError,
    LedgerHeader,
    is_sealed,
    sealed_messages,
)
from factory.runtime.batches.batch import Replacement


@dataclass(frozen=True, eq=False)
class MicroBatchRecord:
    """What one process used of a step in one micro-batch.

    Attributes:
        rank: The process, from 0.
        micro: The micro-batch, from 0.
        rows: Row ids, int64 [B]; of a stream the samples' numbers in the epoch.
        keys: Storage keys, B long; None where the catalog knows them.
        replaced: Samples that could not be read, and what was used instead.
    """

    rank: int
    micro: int
    rows: NDArray[np.int64]
    keys: tuple[str, ...] | None
    replaced: tuple[Replacement, ...]


@dataclass(frozen=True, eq=False)
class RecordedStep:
    """One completed optimizer step; all numbers count from 0.

    Attributes:
        global_step: The step since the run began.
        epoch: The epoch.
        step: The step inside the epoch.
        backend: Name of the backend.
        bucket: Name of the bucket.
        about: What the file says that tells of it.
        micros: Its micro-batches by rank, then by number.
    """

    global_step: int
    epoch: int
    step: int
    backend: str
    bucket: str
    about: LedgerHeader
    micros: tuple[MicroBatchRecord, ...]

    @property
    def missing(self) -> list[int]:
        """Ranks of which not every micro-batch is on record; of some with one share, the first."""
        size = self.about.context_parallel
        shares = [each.rank // size for each in self.micros]
        counts = np.bincount(shares, minlength=self.about.shares)
        return (np.flatnonzero(counts < self.about.micros) * size).tolist()

    @property
    def rows(self) -> NDArray[np.int64]:
        """Rows of the global batch in its order, int64 [B]; those of missing ranks left out."""
        return np.concatenate([each.rows for each in self.micros])


@dataclass(frozen=True)
class _FileSteps:
    """What one file tells of one step."""

    about: LedgerHeader
    cells: list[dict[str, Any]]


def read_ledger(
    *folders: Path,
    first: int = 0,
    last: int | None = None,
    using: Mapping[str, int | str] | None = None,
) -> dict[int, RecordedStep]:
    """Read what the files of a ledger tell, merged by step.

    Of a step that was done twice, the files begun later count. A file that was cut off is read
    up to its last whole record batch.

    Args:
        folders: Where the files lie; those of a run and of runs that it continued.
        first: The first global step wanted, from 0.
        last: The last one; None for all.
        using: Tells only of steps that used a sample: its row by the name of the backend, or its
            key for a stream.

    Returns:
        The steps by their number, ascending.

    Raises:
        CacheError: A file is of another format.
    """
    by_step: dict[int, list[_FileSteps]] = {}
    for file in ledger_files(*folders):
        found: dict[int, _FileSteps] = {}
        for about, record in read_file(file):
            for cells in _wanted(record, first, last, using):
                found.setdefault(cells["global_step"], _FileSteps(about, [])).cells.append(cells)
        for step, part in found.items():
            by_step.setdefault(step, []).append(part)
    return {step: _merged(by_step[step]) for step in sorted(by_step)}


def ledger_files(*folders: Path) -> list[Path]:
    """Return the files of ledgers, by name; none where there is no folder."""
    return [file for folder in folders for file in sorted(folder.glob(f"*{SUFFIX}"))]


def read_file(file: Path) -> Iterator[tuple[LedgerHeader, pa.RecordBatch]]:
    """Yield the whole record batches of a file; none of one cut off before the first.

    Raises:
        CacheError: It is of another format, or damaged before its end.
        OSError: It cannot be opened.
    """
    with file.open("rb") as source:
        messages = _sealed(source) if is_sealed(source) else _plain(source)
        about = None
        try:
            for found in messages:
                if about is None:
                    about = LedgerHeader.of(found, file)
                else:
                    found.validate(full=True)
                    yield about, found
        except DamagedMessageError as error:
            raise CacheError(
                f"{file} is damaged: {error}; move it out of the folder, and its steps are told "
                "by the plan alone"
            ) from error


def _sealed(source: BinaryIO) -> Iterator[Any]:
    """Yield the schema of a file, then its record batches."""
    schema = None
    for message in sealed_messages(source):
        if schema is None:
            schema = pa.ipc.read_schema(pa.py_buffer(message))
            yield schema
        else:
            yield pa.ipc.read_record_batch(pa.py_buffer(message), schema)


def _plain(source: BinaryIO) -> Iterator[Any]:
    """Yield the same of a file without checksums, as they were once written, as far as it goes."""
    with suppress(pa.ArrowException, StopIteration, OSError, EOFError, ValueError, MemoryError):
        stream = pa.ipc.open_stream(pa.py_buffer(source.read()))
        yield stream.schema
        while True:  # to the end, or to where a process was killed while it wrote
            record = stream.read_next_batch()
            record.validate(full=True)
            if any(record[f.name].null_count for f in record.schema if not f.nullable):
                return
            yield record


def begun(file: Path) -> int:
    """Return when a file was begun, as its writer saw it, ns; 0 where it does not say."""
    try:
        return next((about.started for about, _ in read_file(file)), 0)
    except (CacheError, OSError):
        return 0  # of another format, or damaged: whoever reads it is told


def _wanted(
    record: pa.RecordBatch, first: int, last: int | None, using: Mapping[str, int | str] | None
) -> Iterable[dict[str, Any]]:
    """Return the micro-batches of some steps, or those of them that used a sample."""
    steps = record["global_step"].to_numpy()
    inside = (steps >= first) & (steps <= (steps.max(initial=0) if last is None else last))
    chosen: list[dict[str, Any]] = record.filter(pa.array(inside)).to_pylist()
    if using is None:
        return chosen
    return [cells for cells in chosen if _uses(cells, using.get(cells["backend"]))]


def _uses(cells: dict[str, Any], sample: int | str | None) -> bool:
    if sample is None:
        return False
    used = cells["rows"] if isinstance(sample, int) else cells["keys"]
    return sample in (used or ())


def _division(about: LedgerHeader) -> tuple[int, int, int]:
    """Return how a batch was divided."""
    return about.ranks, about.micros, about.context_parallel


def _merged(parts: list[_FileSteps]) -> RecordedStep:
    """Put together what the files of all ranks tell of one step."""
    latest = max(parts, key=lambda part: part.about.started).about
    by_share: dict[int, _FileSteps] = {}  # ranks of one share use the same samples
    for part in sorted(parts, key=lambda part: part.about.started):
        if _division(part.about) == _division(latest):
            by_share[part.about.rank // latest.context_parallel] = part
    micros = tuple(
        MicroBatchRecord(
            part.about.rank,
            cells["micro"],
            np.array(cells["rows"], dtype=np.int64),
            None if cells["keys"] is None else tuple(cells["keys"]),
            tuple(Replacement(**one) for one in cells["replaced"] or ()),
        )
        for _, part in sorted(by_share.items())
        for cells in part.cells
    )
    head = by_share[latest.rank // latest.context_parallel].cells[0]
    return RecordedStep(
        global_step=head["global_step"],
        epoch=head["epoch"],
        step=head["step"],
        backend=head["backend"],
        bucket=head["bucket"],
        about=latest,
        micros=micros,
    )


def recorded_steps(*folders: Path) -> NDArray[np.int64]:
    """Return the global steps, from 0, that are on record, ascending, int64 [n].

    Raises:
        CacheError: A file is of another format.
    """
    found = [
        record["global_step"].to_numpy()
        for file in ledger_files(*folders)
        for _, record in read_file(file)
    ]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)
