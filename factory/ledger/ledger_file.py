"""A ledger file open for appending; record batches reach it whole or not at all."""

import io
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from factory.ledger.arrow_messages import END, seal, split_schema
from factory.ledger.columns import LedgerHeader, file_name
from factory.ledger.reader import begun, ledger_files


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
