"""The ledger of a run: records which samples each completed step used."""

import io
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from factory.errors import StorageError
from factory.ledger.file_format import END, SCHEMA, LedgerHeader, file_name, seal, split_schema
from factory.ledger.reader import begun, ledger_files
from factory.runtime.batches.batch import Batch


class LedgerFile:
    """One file, open for appending; a record batch reaches it as a whole or not at all.

    Attributes:
        last_step: The last global step in it, from 0; -1 before there is one.
    """

    def __init__(self, folder: Path, first_step: int, about: LedgerHeader) -> None:
        """Make a file that is not there yet; nothing is written before the first append.

        Args:
            folder: Where it lies.
            first_step: The first global step it will hold, from 0.
            about: What its steps are steps of.

        Raises:
            OSError: It cannot be made.
        """
        self.last_step = -1
        folder.mkdir(parents=True, exist_ok=True)
        # Of a step in two files the later one counts, also where the clock was set back since.
        latest = max(map(begun, ledger_files(folder)), default=0)
        about = replace(about, started=max(time.time_ns(), latest + 1))
        self._file = _create(folder, first_step, about)
        self._sink = io.BytesIO()
        self._begun = False
        self._stream = pa.ipc.new_stream(
            self._sink, about.schema(), options=pa.ipc.IpcWriteOptions(compression="zstd")
        )

    def append(self, record: pa.RecordBatch, last_step: int) -> None:
        """Append a record batch.

        Raises:
            OSError: It cannot be written.
        """
        self._stream.write_batch(record)
        self._put()
        self.last_step = last_step

    def sync(self) -> None:
        """Wait until the disk has what was appended.

        Raises:
            OSError: The disk does not take it.
        """
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write the mark of the end, without which a file is read just the same."""
        with suppress(OSError):
            self._stream.close()
            self._put()
        self.abandon()

    def abandon(self) -> None:
        """Let go of the file as it is, such as after an append that failed half-way."""
        self._file.close()

    def _put(self) -> None:
        """Write what Arrow has made of it to the file, and forget it."""
        made = memoryview(self._sink.getvalue())
        self._sink.seek(0)
        self._sink.truncate()
        if not self._begun:
            schema, made = split_schema(made)
            self._write(seal(schema))
            self._begun = True
        if made:
            self._write(made.tobytes() if made == END else seal(made))

    def _write(self, message: bytes) -> None:
        left = memoryview(message)
        while left:  # a disk that is nearly full takes a part
            left = left[self._file.write(left) :]


def _create(folder: Path, first_step: int, about: LedgerHeader) -> BinaryIO:
    attempt = 0
    while True:
        try:
            path = folder / file_name(first_step, about, attempt)
            # Unbuffered: what is written is out of the process, should it be killed.
            return path.open("xb", buffering=0)
        except FileExistsError:
            attempt += 1


# Micro-batches of a record batch: some 30 KB, of which a killed process loses at most one. Saving
# a checkpoint writes what there is, so that the ledger never lags behind one.
EVERY = 256


class _NotedBatch(NamedTuple):
    """One micro-batch that was handed out, in the order of the columns; `rows` int64 [B]."""

    global_step: int
    epoch: int
    step: int
    micro: int
    backend: str
    bucket: str
    rows: NDArray[np.int64]
    keys: list[str] | None
    replaced: list[dict[str, Any]] | None

    @property
    def place(self) -> tuple[int, int]:
        """Its epoch and step."""
        return self.epoch, self.step


class Ledger:
    """Writes one process's part of the record of a run.

    What was handed out (`note`) is recorded once its step is completed (`commit`); prefetched
    batches that no step used are not. Nothing is written before the first completed step. Called
    from the thread that trains.
    """

    def __init__(self, folder: Path | str | None, *, every: int = EVERY) -> None:
        """Store the settings; no I/O.

        Args:
            folder: Where the files lie, on this machine; made when it is first needed. Nothing
                is recorded if None.
            every: Micro-batches after which they are written.
        """
        self.folder = None if folder is None else Path(folder)
        self.about = LedgerHeader()
        self._every = every
        self._noted: list[_NotedBatch] = []
        self._completed: list[_NotedBatch] = []
        self._file: LedgerFile | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the settings; each process writes files of its own."""
        fresh = Ledger(self.folder, every=self._every)
        return {**vars(fresh), "about": self.about}

    def begin(self, about: LedgerHeader) -> None:
        """Say what the steps that follow are steps of, before the first of them."""
        if about != self.about:
            self.close()
            self.about = about
        self._write()

    def restart(self) -> None:
        """Forget what was handed out and not completed: the loader begins anew.

        Raises:
            StorageError: A file cannot be written.
        """
        self._noted.clear()
        self._write()  # a step that is done again must not lie beside its first time

    def note(self, batch: Batch) -> None:
        """Note that a micro-batch is handed to the trainer."""
        if self.folder is None:
            return
        place = batch.epoch, batch.step
        self._noted.append(
            _NotedBatch(
                batch.global_step,
                *place,
                sum(note.place == place for note in self._noted),
                batch.backend,
                batch.bucket,
                # A copy: the memory of a batch may be used again.
                batch.rows.numpy().astype(np.int64),
                list(batch.keys) if batch.backend in self.about.streams else None,
                [one._asdict() for one in batch.replaced] or None,
            )
        )

    def commit(self, epoch: int, steps: int) -> None:
        """Record what the completed steps used.

        Args:
            epoch: The epoch, from 0.
            steps: How many of its optimizer steps are completed.

        Raises:
            StorageError: A file cannot be written.
        """
        done = 0
        while done < len(self._noted) and self._noted[done].place < (epoch, steps):
            done += 1
        if done:
            self._completed += self._noted[:done]
            del self._noted[:done]
            if len(self._completed) >= self._every:
                self._write()

    def flush(self) -> None:
        """Write every completed step to the disk, as when a checkpoint is saved.

        Raises:
            StorageError: A file cannot be written.
        """
        self._write()
        if self._file is not None:
            try:
                self._file.sync()
            except OSError as error:
                raise self._unwritable(error) from error

    def close(self) -> None:
        """Write every completed step and end the file; what was not completed is forgotten."""
        self._noted.clear()
        self._write()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self) -> None:
        """Append the completed steps as one record batch."""
        notes, self._completed = self._completed, []
        if not notes or self.folder is None:
            return
        first = notes[0].global_step
        try:
            if self._file is not None and first <= self._file.last_step:
                # Done again, as after a checkpoint was loaded: that is another file's.
                self._file.close()
                self._file = None
            if self._file is None:
                self._file = LedgerFile(self.folder, first, self.about)
            self._file.append(_record(notes), notes[-1].global_step)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StorageError:
        """Let go of the file, and return the error that says what mends it."""
        if self._file is not None:
            self._file.abandon()
            self._file = None
        return StorageError(
            f"the ledger in {self.folder} cannot be written: {error.strerror or error}; make room, "
            "have it elsewhere by data.ledger=FOLDER, or set data.ledger=null to train without one"
        )


def _record(notes: list[_NotedBatch]) -> pa.RecordBatch:
    """Return completed micro-batches as rows of the ledger."""
    arrays = []
    for field, cells in zip(SCHEMA, zip(*notes, strict=True), strict=True):
        if field.name == "rows":
            ends = np.cumsum([0, *map(len, cells)], dtype=np.int32)
            flat = pa.array(np.concatenate(cells))
            arrays.append(pa.ListArray.from_arrays(pa.array(ends), flat))
        else:
            arrays.append(pa.array(cells, field.type))
    return pa.record_batch(arrays, schema=SCHEMA)
