"""Discovery: list the storage once, then measure the headers of new and changed samples."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from factory.catalog.arrow_columns import as_mask, find, starts_with_any
from factory.catalog.captions.caption_reader import TEXT_COLUMNS, texts_of
from factory.catalog.facts import FOCUS, SCHEMA, SIZE_DIFFERS, Facts, transient_errors
from factory.catalog.globs import expression, matching, relative, with_suffix
from factory.catalog.left_out import IGNORED, LeftOut, count_left_out, ignored, without_ignored
from factory.catalog.scan.facts_diff import same_etag
from factory.catalog.scan.media_type import MediaType
from factory.catalog.scan.sample_fault import sample_fault
from factory.catalog.scan.scan import Scan
from factory.engine.engine import Engine
from factory.errors import EmptyBackendError, TableError, UnsafeKeyError
from factory.limits import Above, FileSuffix, check_limits
from factory.media.headers import MAX_PIXELS
from factory.metrics.stages import progress
from factory.records import MediaFacts, ObjectInfo
from factory.storage.base import Storage, TabularStorage

logger = logging.getLogger("factory")

PICTURES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff",
    ".avif", ".heic", ".heif", ".hif", ".jxl",
)  # fmt: skip

# A header out of the page cache takes 20 us, one from a disk or a server at least 100. Where
# nothing waits, more threads than one only take the interpreter from each other: 4 of them were
# slower by a third.
QUICK_S = 60e-6
QUICK_THREADS = 1

# What measuring gives; captions come beside it.
_MEASURED = pa.schema(
    [
        *(field for field in SCHEMA if not field.name.startswith("text")),
        *(pa.field(name, pa.float32()) for name in FOCUS),
    ]
)


@dataclass(frozen=True)
class Discovery:
    """Find samples by listing and measure them by their headers.

    Attributes:
        suffixes: File suffixes that count as pictures. Rows of tables always do. Backends of
            videos have suffixes of their own.
        include: Patterns of keys below the prefix that count, such as 'sets/*/*.jpg'; empty: all.
            "*" stays in a folder, "**" crosses folders, a pattern without "/" counts at any depth.
        exclude: Patterns of keys that do not count, such as 'raw/**' or '*_mask.png'.
        ignore: Patterns of files that are no data: trash, thumbnails, hidden ones; []: none. Case
            does not matter; how many of them there are is counted.
        max_megapixels: Larger pictures are dropped as decompression bombs, MP.
        verify: Decode every picture once, to drop damaged ones at the scan.
    """

    suffixes: Annotated[tuple[str, ...], FileSuffix()] = PICTURES
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    ignore: tuple[str, ...] = IGNORED
    max_megapixels: Annotated[float, Above(0)] = MAX_PIXELS / 1e6
    verify: bool = False

    def __post_init__(self) -> None:
        """Accept any sequence of suffixes and patterns.

        Raises:
            ValueError: A suffix has no dot, or a pattern cannot be understood.
        """
        object.__setattr__(self, "suffixes", tuple(suffix.lower() for suffix in self.suffixes))
        for name in ("include", "exclude", "ignore"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_limits(self, "metadata")
        for pattern in (*self.include, *self.exclude, *self.ignore):
            expression(pattern)

    def scan(self, scan: Scan, engine: Engine) -> Facts:
        """Return the facts of every sample, measuring only what is new or changed.

        Raises:
            StorageError: The storage cannot be listed, or fails for reasons that are not one
                sample's own.
            EmptyBackendError: Not one file passes the patterns.
            TableError: Filters ask for columns, and the storage has none of them.
        """
        tabular = isinstance(scan.storage, TabularStorage)
        if scan.columns and not tabular:
            raise _no_columns(scan)
        listing = scan.storage.listing("" if tabular else scan.prefix)
        samples, left_out = self.samples(scan, listing)
        if not len(samples) and (self.include or self.exclude):
            self._check_patterns(scan, listing)
        if not tabular:
            self._tell_unmatched(scan, listing)
        origin = scan.origin(self.settings)
        table = self.measured(scan, engine, samples, origin)
        columns = texts_of(scan, engine, listing, table["key"], origin)
        for name, column in zip(TEXT_COLUMNS, columns, strict=True):
            table = table.append_column(SCHEMA.field(name), column)
        for name in FOCUS:
            if table[name].null_count == len(table):
                table = table.drop_columns(name)
        if scan.columns:
            for name, column in _own_columns(scan, table["key"]):
                table = table.append_column(f"column.{name}", column)
        facts = Facts.of_table(table, origin, scan.known)
        return replace(facts, left_out=left_out)

    @property
    def settings(self) -> str:
        """What shapes a measurement; which files are measured does not."""
        return f"Discovery(max_megapixels={self.max_megapixels}, verify={self.verify})"

    def samples(self, scan: Scan, listing: pa.Table) -> tuple[pa.Table, LeftOut]:
        """Return the rows of a listing that are samples, and what else lies there."""
        if isinstance(scan.storage, TabularStorage):
            return without_ignored(scan.storage, listing, self.ignore)
        keys = relative(listing["key"], scan.prefix)
        picked = np.ones(len(keys), dtype=bool)
        if self.include:
            picked &= matching(keys, self.include)
        if self.exclude:
            picked &= ~matching(keys, self.exclude)
        counts = with_suffix(keys, scan.medium.suffixes or self.suffixes)
        gone = ignored(keys, self.ignore)
        sidecar = scan.captions.sidecar
        left_out = LeftOut()
        if gone.any() or not counts.all():
            beside = [] if sidecar is None else [sidecar]
            chosen = pa.array(picked)
            left_out = count_left_out(
                keys.filter(chosen), counts[picked], gone[picked], self.ignore, beside
            )
        counts &= picked & ~gone
        return listing if counts.all() else listing.filter(pa.array(counts)), left_out

    def _tell_unmatched(self, scan: Scan, listing: pa.Table) -> None:
        """Warn of patterns that mean no file: most are misspelt."""
        keys = relative(listing["key"], scan.prefix)
        for name in ("include", "exclude"):
            for pattern in getattr(self, name):
                if len(keys) and not matching(keys, [pattern]).any():
                    logger.warning(
                        "%s: the pattern %r of metadata.%s matches none of %d files; patterns are "
                        "compared with keys below the prefix, such as %r",
                        scan.name, pattern, name, len(keys), keys[0].as_py(),
                    )  # fmt: skip

    def _check_patterns(self, scan: Scan, listing: pa.Table) -> None:
        """Refuse patterns that leave none of the samples there are."""
        every = replace(self, include=(), exclude=()).samples(scan, listing)[0]["key"]
        if not len(every):
            return
        given = [
            f"data.backends.{scan.name}.metadata.{name}={list(patterns)}"
            for name, patterns in (("include", self.include), ("exclude", self.exclude))
            if patterns
        ]
        raise EmptyBackendError(
            f"backend {scan.name!r}: none of {len(every)} files in {scan.prefix or '/'!r} of "
            f"{scan.storage.identity} passes {' and '.join(given)}; patterns are compared with "
            f"keys below the prefix, such as {relative(every[:1], scan.prefix)[0].as_py()!r}"
        )

    def measured(
        self, scan: Scan, engine: Engine, samples: pa.Table, origin: dict[str, Any]
    ) -> pa.Table:
        """Return what each sample says about itself, measuring only what is new or changed.

        Args:
            scan: The scan.
            engine: Runs the reads.
            samples: Columns key, size and etag of a listing, sorted by key.
            origin: What the facts of this scan are measured from.

        Returns:
            The columns of `SCHEMA` but the texts, and those of `FOCUS`, sorted by key.
        """
        if scan.journal is not None:
            scan.journal.origin = origin | {"captions": ""}
        known = _reusable(scan, origin)
        if known is None:
            return _joined([self._look(scan, engine, samples)])
        places = find(samples["key"], known["key"])
        same = same_etag(samples, known, places)
        # A file that differs from its facts was replaced under the same etag: read it again.
        same &= ~starts_with_any(known["error"], (*transient_errors(scan.known), SIZE_DIFFERS))[
            places
        ]
        if scan.medium.whole:
            looked = as_mask(pc.is_valid(known[FOCUS[0]])) | as_mask(pc.is_valid(known["error"]))
            same &= looked[places]
        if same.all():
            return known.take(pa.array(places)) if len(places) < len(known) else known
        old = known.take(pa.array(places[same]))
        return _joined([old, self._look(scan, engine, samples.filter(pa.array(~same)))])

    def _look(self, scan: Scan, engine: Engine, samples: pa.Table) -> pa.Table:
        look = _Measure(scan.medium, scan.storage, int(self.max_megapixels * 1e6), self.verify)
        found = []
        with progress(f"measure {scan.name}", len(samples), "files") as advance:
            for chunk, rows in _run(look, engine, self._chunks(scan, samples)):
                if isinstance(rows, Exception):
                    raise rows
                if scan.journal is not None:
                    scan.journal.add(rows)
                found.append(rows)
                advance(len(chunk))
        return _joined(found)

    def _chunks(self, scan: Scan, samples: pa.Table) -> Iterator[pa.Table]:
        """Cut samples into pieces of work; one to decode is work enough by itself."""
        size = 1 if self.verify or scan.medium.whole else scan.storage.spans_at_once
        return (samples.slice(start, size) for start in range(0, len(samples), size))


@dataclass(frozen=True)
class _Measure:
    """Reads the headers of some samples; picklable, so that any engine can run it."""

    medium: MediaType
    storage: Storage
    max_pixels: int
    verify: bool

    def __call__(self, chunk: pa.Table) -> pa.Table:
        infos = list(map(ObjectInfo, *(column.to_pylist() for column in chunk.columns)))
        outcomes = self.medium.measure_many(
            self.storage, infos, max_pixels=self.max_pixels, verify=self.verify
        )
        return self._columns(chunk, infos, outcomes)

    def _columns(
        self,
        chunk: pa.Table,
        infos: Sequence[ObjectInfo],
        outcomes: Sequence[MediaFacts | Exception],
    ) -> pa.Table:
        errors: list[str | None] = [None] * len(outcomes)
        facts = []
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, MediaFacts):
                facts.append(outcome)
            else:
                errors[number] = self._reason(infos[number], outcome)
                facts.append(_NOTHING)
        width, height, kind, frames, focus = zip(*facts, strict=True)
        columns = (width, height, kind, frames, errors, *_axes(focus))
        arrays = map(_array, columns, list(_MEASURED)[3:])
        return pa.table([*chunk.columns, *arrays], schema=_MEASURED)

    def _reason(self, info: ObjectInfo, error: Exception) -> str:
        """Return why one sample cannot be used; raise what is not its own fault."""
        if isinstance(error, UnsafeKeyError):
            return f"unsafe path: {error}"
        work = f"measuring {info.key!r} in {self.storage.identity}"
        return sample_fault(error, self.storage, work).fact


def _run(
    look: _Measure, engine: Engine, chunks: Iterator[pa.Table]
) -> Iterator[tuple[pa.Table, pa.Table | Exception]]:
    """Measure chunks, the first one to see what takes the time: waiting, or Python itself."""
    first = next(chunks, None)
    if first is None:
        return
    start = time.perf_counter()
    rows = look(first)
    waits = time.perf_counter() - start > QUICK_S * len(first)
    yield first, rows
    yield from engine.map(look, chunks, at_once=None if waits else QUICK_THREADS)


_NOTHING = MediaFacts(0, 0, "", 1)


def _array(values: Sequence[Any], field: pa.Field) -> pa.Array:
    """Return a column; most have no error and no focus, which needs no look at each row."""
    if field.nullable and values.count(None) == len(values):
        return pa.nulls(len(values), field.type)
    return pa.array(values, field.type)


def _axes(focus: Sequence[tuple[float, float] | None]) -> Iterator[Sequence[float | None]]:
    """Yield the x of each focus, then the y; None where nothing was looked for."""
    if focus.count(None) == len(focus):
        yield from (focus, focus)  # type: ignore[misc]  # nothing but None
        return
    for axis in (0, 1):
        yield [None if point is None else point[axis] for point in focus]


def _joined(parts: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of all parts, sorted by key as every listing is."""
    table = pa.concat_tables([_MEASURED.empty_table(), *parts]).combine_chunks()
    return table if len(parts) == 1 else table.take(pc.sort_indices(table["key"]))


def _reusable(scan: Scan, origin: dict[str, Any]) -> pa.Table | None:
    """Return what was measured before in the same way, and by a scan that was cut off.

    The caption source may differ: texts are read again then, samples are not.
    """
    parts = []
    known = scan.known
    if known is not None and known.origin | {"captions": ""} == origin | {"captions": ""}:
        parts.append(_with_focus(known.table))
    left = None if scan.journal is None else scan.journal.read()
    if left is not None and left.schema.equals(_MEASURED):
        parts.append(left)
    if len(parts) < 2:  # noqa: PLR2004 - nothing to join
        return parts[0] if parts else None
    # Of several rows of a key the last one counts: the newest look.
    table = pa.concat_tables(parts).combine_chunks()
    keys = table["key"].combine_chunks()
    backwards = pa.array(np.arange(len(keys) - 1, -1, -1))
    last = find(pc.unique(keys), keys.take(backwards))
    return table.take(pa.array(len(keys) - 1 - last))


def _with_focus(table: pa.Table) -> pa.Table:
    """Return `_MEASURED` of a catalog, which has no focus unless one was looked for."""
    for name in FOCUS:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), pa.float32()))
    return table.select(_MEASURED.names)


def _no_columns(scan: Scan) -> TableError:
    where = f"data.backends.{scan.name}"
    return TableError(
        f"{scan.storage.identity} has no table, and so no column {', '.join(scan.columns)} for "
        f"{where}.filters; set metadata@{where}=parquet, or {where}.filters=[]"
    )


def _own_columns(scan: Scan, keys: pa.ChunkedArray) -> Iterator[tuple[str, pa.Array]]:
    """Yield the columns of the samples' own table that filters look at, in the keys' order."""
    if not isinstance(scan.storage, TabularStorage):
        raise _no_columns(scan)
    table = scan.storage.rows(scan.columns)
    places = find(keys, table["key"].cast(keys.type))
    chosen = pa.array(places, mask=places < 0)
    for name in scan.columns:
        yield name, table[name].take(chosen).combine_chunks()
