"""Samples of a stream's shards: read block by block, measured, filtered, shuffled."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa

from factory.backends.pixels import Picture
from factory.backends.streaming.backend import StreamBackend
from factory.catalog.captions.caption_reader import column_texts
from factory.catalog.catalog import Catalog
from factory.catalog.crops import OwnCrops
from factory.catalog.facts import Fact, Facts
from factory.catalog.left_out import IGNORED, ignored
from factory.errors import MediaError
from factory.media.decode_limits import DecodeLimits
from factory.media.headers import measure
from factory.sampling.permutation import Permutation, derive_key
from factory.storage.huggingface_stream import RowStream, ShardRows, StreamRow

# Above the rows of any shard, so that (shard, row) is one number.
LARGEST_SHARD = 2**40
# Seconds a row may take when a stream is closed: what is slower hangs.
CLOSE_S = 10.0


@dataclass(frozen=True, slots=True)
class StreamSample:
    """One sample of a stream, as it waits.

    Attributes:
        position: Its number in the pass, in reading order, dropped rows counted.
        bucket: Name of its bucket.
        picture: How it is cut.
        size: Its width and height, px.
        data: Its bytes as the dataset holds them.
        captions: Every caption it may be trained with.
    """

    position: int
    bucket: str
    picture: Picture
    size: tuple[int, int]
    data: bytes
    captions: tuple[str, ...]


# What becomes of one row: a sample, or why it is dropped, "reason: detail".
Outcome = StreamSample | str


@dataclass(frozen=True)
class BlockPosition:
    """Where in a pass reading goes on: the beginning of a block.

    Attributes:
        block: The block, from 0.
        shards: Shards of the pass that are done, in its own order.
        state: State of the shard that was begun; None where none was.
        index: Rows of it that are done.
    """

    block: int = 0
    shards: int = 0
    state: dict[str, Any] | None = None
    index: int = 0


class ShardBlocks:
    """The rows of one pass in blocks of equal length, the last one apart.

    What a block holds is a function of (dataset, settings, seed, pass, block) alone. While one
    is used up, a thread reads the next.

    Attributes:
        rows_read: Rows of the blocks given out so far.
    """

    def __init__(
        self,
        backend: StreamBackend,
        stream: RowStream,
        *,
        seed: int,
        pass_index: int,
        place: BlockPosition | None = None,
    ) -> None:
        """Store the parts; nothing is read before the first block is asked for."""
        self._backend, self._stream, self._seed, self._pass = backend, stream, seed, pass_index
        self._place = place or BlockPosition()
        self.rows_read = 0
        # One thread, which alone uses what is below.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="factory-stream")
        self._ahead: Future[tuple[list[Outcome], BlockPosition]] | None = None
        self._closing = False
        self._begun = self._place
        self._shards, self._number = self._place.shards, self._place.block
        self._rows: ShardRows | None = None

    @property
    def place(self) -> BlockPosition:
        """Where the block begins that is given out next."""
        return self._place

    def read(self) -> list[Outcome]:
        """Return the next block; an empty one means that the pass is over.

        Raises:
            StorageError: The dataset cannot be read.
        """
        ahead = self._ahead or self._pool.submit(self._next_block)
        outcomes, self._place = ahead.result()
        self.rows_read += len(outcomes)
        # At the end there is nothing to begin: asked again, the block is empty again.
        self._ahead = self._pool.submit(self._next_block) if outcomes else None
        return outcomes

    def close(self) -> None:
        """Stop reading, after the row that is on its way, and let go of the file.

        A row that takes too long is not waited for: its thread ends when it comes.
        """
        self._closing = True
        ahead, self._ahead = self._ahead, None
        stuck = ahead is not None and not ahead.cancel() and bool(wait([ahead], CLOSE_S).not_done)
        self._pool.shutdown(wait=not stuck)
        if not stuck:
            self._close_shard()

    def _next_block(self) -> tuple[list[Outcome], BlockPosition]:
        """Return the block after those that were read, and where the one after it begins."""
        rows = self._next_rows()
        judged = judge(self._backend, self._stream, rows, self._seed)
        order = self._order(len(rows), "rows", self._number)
        first = self._number * self._backend.block
        self._number += bool(rows)
        state = None if self._rows is None else self._rows.state
        index = 0 if self._rows is None else self._rows.index
        place = BlockPosition(self._number, self._shards, state, index)
        return [_placed(judged[row], first + n) for n, row in enumerate(order)], place

    def _next_rows(self) -> list[StreamRow]:
        rows: list[StreamRow] = []
        while len(rows) < self._backend.block and self._shards < self._stream.shards:
            if self._closing:
                return []
            row = next(self._open_shard(), None)
            if row is not None:
                rows.append(row)
            else:
                self._close_shard()
                self._shards += 1
        return rows

    def _open_shard(self) -> ShardRows:
        if self._rows is None:
            shard, begun = self._shard(self._shards), self._begun
            # The shard in which reading was left off goes on from there, others begin.
            resumed = begun.state is not None and begun.shards == self._shards
            where = (begun.state, begun.index) if resumed else (None, 0)
            self._rows = self._stream.rows(shard, *where)
        return self._rows

    def _close_shard(self) -> None:
        if self._rows is not None:
            self._rows.close()
            self._rows = None

    def _shard(self, place: int) -> int:
        """Return which shard comes at a place of this pass."""
        return self._order(self._stream.shards, "shards", 0)[place]

    def _order(self, count: int, what: str, number: int) -> Sequence[int]:
        """Return a shuffle of [0, count), or where nothing is shuffled the range itself."""
        if not self._backend.shuffle_buffer:
            return range(count)
        key = derive_key(self._seed, "stream", self._backend.name, self._pass, what, number)
        shuffled: list[int] = Permutation(count, key)(np.arange(count)).tolist()
        return shuffled


def judge(
    backend: StreamBackend, stream: RowStream, rows: Sequence[StreamRow], seed: int
) -> list[Outcome]:
    """Measure and decide rows, by the rules that hold for stored samples.

    Returns:
        One outcome a row, in their order; positions are not set yet.
    """
    if not rows:
        return []
    # Facts are sorted by key, and a block may begin a shard of a lower number.
    extra = {
        f"column.{name}": pa.array([row.cells[number] for row in rows], stream.types[name])
        for number, name in enumerate(backend.columns)
        if name in {one.column for one in backend.filters}
    }
    paths = pa.array([row.path for row in rows], pa.large_string())
    gone = ignored(paths, getattr(backend.metadata, "ignore", IGNORED)).tolist()
    said = _texts(backend, stream, rows)
    facts_of = map(_fact, rows, *said, repeat(backend.limits), gone)
    known = Facts.of(facts_of, {}, extra=extra)
    facts = backend.of_parts(known)
    made = backend.decide(facts, seed)
    catalog = Catalog(facts, made, backend.caption, OwnCrops(facts, backend.geometry, seed))
    names = {row: bucket.name for bucket in made.buckets for row in bucket.rows.tolist()}
    places = {key: place for place, key in enumerate(facts.table["key"].to_pylist())}
    widths, heights = facts.column("width").tolist(), facts.column("height").tolist()
    outcomes: list[Outcome] = []
    for row in rows:
        place = places[row.key]
        if place not in names:
            outcomes.append(_why(facts, place, made.reasons[int(made.reason[place])]))
            continue
        wide, tall = widths[place], heights[place]
        number = row.shard * LARGEST_SHARD + row.index
        data = row.data or b""
        picture = Picture(number, row.key, "", catalog.crop(place), wide, tall, len(data))
        outcomes.append(
            StreamSample(-1, names[place], picture, (wide, tall), data, catalog.texts(place))
        )
    return outcomes


def _why(facts: Facts, place: int, reason: str) -> str:
    """Return why a row is dropped, "reason: detail" where there is a detail."""
    for name in ("error", "text_error"):
        text = facts.texts(name, [place])[0]
        if text is not None and text.partition(":")[0] == reason:
            return str(text)
    return reason


def _texts(
    backend: StreamBackend, stream: RowStream, rows: Sequence[StreamRow]
) -> tuple[list[tuple[str, ...] | None], list[str | None]]:
    """Return the raw texts of rows, and why some cannot be used."""
    columns = backend.caption_columns(stream)
    if not columns:
        return [None] * len(rows), [None] * len(rows)
    cells = [
        pa.array([row.cells[number] for row in rows], one.kind)
        for number, one in enumerate(columns)
    ]
    texts, errors = column_texts(columns, cells, backend.caption_option)
    return [tuple(text) for text in texts.to_pylist()], errors.to_pylist()


def _fact(
    row: StreamRow,
    text: tuple[str, ...] | None,
    text_error: str | None,
    limits: DecodeLimits,
    gone: bool,
) -> Fact:
    said: dict[str, Any] = {"text": text, "text_error": text_error}
    if gone:
        return Fact(row.key, 0, "", error=f"ignored: {row.path}", **said)
    if row.data is None:
        return Fact(row.key, 0, "", error=row.error, **said)
    size = len(row.data)
    try:
        media = measure(row.data, size, limits=limits)
    except MediaError as error:
        return Fact(row.key, size, "", error=str(error), **said)
    return Fact(row.key, size, "", media.width, media.height, media.format, **said)


def _placed(outcome: Outcome, position: int) -> Outcome:
    return outcome if isinstance(outcome, str) else replace(outcome, position=position)
