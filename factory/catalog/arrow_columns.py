"""Operations on Arrow columns: sort, match and hash them whole, or read a few rows."""

import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from factory.sampling.permutation import GAMMA, WORD, mix_words

Column: TypeAlias = pa.Array | pa.ChunkedArray

_WORD = 8


def sort_order(keys: Column) -> pa.Array | None:
    """Return the order that sorts the keys by their bytes, stably; None if they are sorted."""
    rows = len(keys)
    if rows < 2 or pc.all(pc.less_equal(keys.slice(0, rows - 1), keys.slice(1))).as_py():  # noqa: PLR2004 - one row is sorted
        return None
    return pc.sort_indices(keys)


def find(keys: Column, among: Column) -> NDArray[np.int64]:
    """Return where each key first stands among others, int64 [n]; -1 where it does not."""
    if len(keys) == len(among) and _chunked(keys).equals(_chunked(among)):
        return np.arange(len(keys), dtype=np.int64)
    places = pc.index_in(keys, value_set=among)
    return np.asarray(pc.fill_null(places, -1).to_numpy(zero_copy_only=False), dtype=np.int64)


def _chunked(column: Column) -> pa.ChunkedArray:
    return column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])


def whole_array(column: Column) -> pa.Array:
    """Return a column in one piece; of no chunk at all it stays as it is."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def as_mask(mask: Column) -> NDArray[np.bool_]:
    """Return a column of truth values as an array; null counts as False."""
    filled = pc.fill_null(mask, False)
    return np.asarray(filled.to_numpy(zero_copy_only=False), dtype=bool)


def concat_texts(*parts: str | Column) -> Column:
    """Return texts put together, row by row, large_string [n]; null where a part is."""
    kind = pa.large_string()
    texts = [pa.scalar(part, kind) if isinstance(part, str) else part for part in parts]
    return pc.binary_join_element_wise(*texts, pa.scalar("", kind))


def starts_with_any(column: Column, words: Sequence[str]) -> NDArray[np.bool_]:
    """Tell which texts start with one of some words, bool [n]; null does not."""
    marked = np.zeros(len(column), dtype=bool)
    if column.null_count < len(column):
        for word in words:
            marked |= as_mask(pc.starts_with(column, word))
    return marked


def text_lists(column: Column) -> Column:
    """Return a column of lists of texts with 64-bit offsets."""
    return column.cast(pa.large_list(pa.large_string()))


def as_lists(column: Column) -> pa.Array:
    """Return a column of texts as lists of one text each; null stays null, as no list."""
    flat = whole_array(column).cast(pa.large_string())
    valid = as_mask(pc.is_valid(flat))
    offsets = np.concatenate([[0], np.cumsum(valid, dtype=np.int64)])
    made = pa.LargeListArray.from_arrays(pa.array(offsets), flat.drop_null())
    return pc.if_else(pa.array(valid), made, pa.scalar(None, made.type))


def stems(keys: Column) -> Column:
    """Return keys without the suffix of their last part, as `PurePosixPath.with_suffix("")`."""
    return pc.replace_substring_regex(keys, pattern=r"([^/])\.[^/.]+$", replacement=r"\1")


def find_name(keys: Column, among: Column) -> NDArray[np.int64]:
    """Return where each name first stands among others, as `find` does, in any form of Unicode.

    macOS takes letters and accents apart in names, and tables are mostly written elsewhere. An
    equal name comes first.
    """
    places = find(keys, among)
    lost = np.flatnonzero(places < 0)
    if lost.size:
        lost = lost[~as_mask(pc.string_is_ascii(keys.take(pa.array(lost))))]
    if lost.size:
        places[lost] = find(composed(keys.take(pa.array(lost))), composed(among))
    return places


def composed(texts: Column) -> Column:
    """Return texts in Unicode's composed form, which systems other than macOS write."""
    return pc.utf8_normalize(texts, form="NFC")


def folded(texts: Column) -> Column:
    """Return texts in one form of Unicode and without case, to compare them by."""
    return composed(pc.utf8_lower(composed(texts)))


def hash_texts(texts: Column, seed: int = 0) -> NDArray[np.uint64]:
    """Return a number for each text that is the same on every machine, uint64 [n].

    Eight bytes at a time go through the mixing steps of splitmix64. Texts of one column are
    worked on together, the k-th words of all of them at once.
    """
    chunks = texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]
    hashed = [_hash(chunk.cast(pa.large_binary()), seed) for chunk in chunks]
    return np.concatenate(hashed) if hashed else np.zeros(0, dtype=np.uint64)


def _hash(texts: pa.LargeBinaryArray, seed: int) -> NDArray[np.uint64]:
    if not len(texts):
        return np.zeros(0, dtype=np.uint64)
    data, ends = texts.buffers()[2], _ends(texts)
    lengths = np.diff(ends)
    state = _mix(lengths.astype(np.uint64) ^ hash_numbers(seed))
    if data is None or not lengths.max():
        return state
    words = _Words(data, int(ends[0]), int(ends[-1]))
    active = np.flatnonzero(lengths > 0)
    for at in range(0, int(lengths.max()), _WORD):
        active = active[lengths[active] > at]
        word = words.at(ends[active] + at, lengths[active] - at)
        state[active] = _mix(state[active] ^ word)
    return state


class _Words:
    """Eight bytes from any place of a buffer, as little-endian numbers."""

    def __init__(self, data: pa.Buffer, first: int, last: int) -> None:
        raw = np.frombuffer(data, dtype=np.uint8)[first:last]
        # Padded, so that the last text's word does not end behind the buffer.
        padded = np.concatenate([raw, np.zeros(_WORD, dtype=np.uint8)])
        self._first = first
        self._view = np.lib.stride_tricks.as_strided(
            padded[:_WORD].view("<u8"), shape=(len(raw) + 1,), strides=(1,)
        )
        self._keep = padded

    def at(self, places: NDArray[np.int64], left: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the words at places; bytes beyond the `left` ones are zeros."""
        word = self._view[places - self._first].astype(np.uint64)
        spare = np.maximum(_WORD - left, 0).astype(np.uint64) * np.uint64(8)
        return np.asarray((word << spare) >> spare)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the numbers mixed as splitmix64 mixes its counter."""
    return mix_words(state + np.uint64(GAMMA))


def hash_numbers(*numbers: int) -> np.uint64:
    """Return one number that depends on every one given and on their order."""
    state = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        state = _mix(state ^ np.uint64(number & WORD))
    return np.uint64(state[0])


def uniform_draws(
    hashes: NDArray[np.uint64], draws: int, *, seed: int, epoch: int = 0
) -> NDArray[np.float64]:
    """Return numbers in [0, 1) that follow from (seed, sample, epoch), float64 [n, draws].

    Args:
        hashes: `hash_texts` of the samples' keys.
        draws: Numbers for each sample.
        seed: The run's seed.
        epoch: The epoch, from 0.
    """
    columns = [_mix(hashes ^ hash_numbers(seed, epoch, n)) for n in range(draws)]
    # 53 bits are what a float64 holds exactly.
    return np.asarray((np.stack(columns, axis=1) >> np.uint64(11)) / 2.0**53)


def add_to_hash(state: Any, column: pa.Array) -> None:
    """Add a column of numbers, of texts or of lists of texts to a running hash.

    What is hashed is what the values are, not how Arrow happens to lay them out: where they are
    null, the lengths of texts and lists, then all bytes in a row.
    """
    if not len(column):
        return
    if column.null_count:
        state.update(np.packbits(as_mask(pc.is_valid(column))).tobytes())
    if pa.types.is_large_list(column.type):
        state.update(_lengths(pc.list_value_length(column)).tobytes())
        column = column.flatten()
    if not pa.types.is_large_string(column.type) and not pa.types.is_string(column.type):
        state.update(np.ascontiguousarray(pc.fill_null(column, 0).to_numpy()).tobytes())
        return
    texts = pc.fill_null(column, "").cast(pa.large_binary())
    state.update(_lengths(pc.binary_length(texts)).tobytes())
    data, ends = texts.buffers()[2], _ends(texts)
    if data is not None and ends[-1] > ends[0]:
        state.update(memoryview(data)[int(ends[0]) : int(ends[-1])])


def _lengths(lengths: pa.Array) -> NDArray[np.int64]:
    return np.asarray(pc.fill_null(lengths, 0).to_numpy(), dtype=np.int64)


def _ends(texts: pa.LargeBinaryArray) -> NDArray[np.int64]:
    """Return where each text begins in the data, and where the last one ends."""
    offsets = np.frombuffer(texts.buffers()[1], dtype="<i8")
    return offsets[texts.offset : texts.offset + len(texts) + 1]


if sys.byteorder != "little":  # pragma: no cover - no such machine trains today
    raise ImportError("the catalog's hashes need a little-endian machine")


_OFFSET = np.dtype(np.int64)


class TextColumn:
    """A column of texts, its memory seen as offsets and bytes."""

    def __init__(self, column: pa.LargeStringArray) -> None:
        """Look at a column without nulls; nothing is copied."""
        _, ends, data = column.buffers()
        self._ends = _offsets(ends, column)
        self._data = memoryview(data or b"")

    def at(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the texts of some rows, int64 [n], in their order."""
        data = self._data
        starts, stops = self._ends[rows].tolist(), self._ends[rows + 1].tolist()
        return [str(data[a:b], "utf-8") for a, b in zip(starts, stops, strict=True)]


class TextListColumn:
    """A column of lists of texts."""

    def __init__(self, column: pa.LargeListArray) -> None:
        """Look at a column whose texts are not null; lists may be. Nothing is copied."""
        self._ends = _offsets(column.buffers()[1], column)
        self._null = np.asarray(column.is_null()) if column.null_count else None
        self._texts = TextColumn(column.values)

    def at(self, rows: NDArray[np.int64]) -> list[list[str] | None]:
        """Return the lists of some rows, int64 [n], in their order; None where there is none."""
        starts = self._ends[rows]
        counts = self._ends[rows + 1] - starts
        lists: list[list[str] | None]
        if (counts == 1).all():  # one caption each is the rule
            lists = [[text] for text in self._texts.at(starts)]
        else:
            # Every list's texts, one after the other: each starts where those before it end.
            before = np.cumsum(counts) - counts
            every = np.arange(int(counts.sum())) + np.repeat(starts - before, counts)
            flat = self._texts.at(every)
            cuts = zip(before.tolist(), (before + counts).tolist(), strict=True)
            lists = [flat[a:b] for a, b in cuts]
        if self._null is not None:
            for place in np.flatnonzero(self._null[rows]).tolist():
                lists[place] = None
        return lists


def column_reader(column: pa.Array) -> TextColumn | TextListColumn | None:
    """Return how to read a column at a few rows; None where Arrow's own way is the only one."""
    if pa.types.is_large_string(column.type) and not column.null_count:
        return TextColumn(column)
    if pa.types.is_large_list(column.type) and pa.types.is_large_string(column.type.value_type):
        return None if column.values.null_count else TextListColumn(column)
    return None


def _offsets(buffer: Any, column: pa.Array) -> NDArray[np.int64]:
    """Return where each cell begins in what the column holds, and where the last one ends."""
    if buffer is None or not len(column):
        return np.zeros(1, dtype=_OFFSET)
    ends: NDArray[np.int64] = np.frombuffer(buffer, dtype=_OFFSET)
    return ends[column.offset : column.offset + len(column) + 1]
