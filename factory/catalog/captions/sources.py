"""Caption strategies: from raw texts to the captions a sample can be trained with.

A strategy says where its raw text comes from (a file beside the sample, columns of a table,
or nowhere) and turns it into captions without any I/O of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from factory.catalog.arrow_columns import as_mask
from factory.catalog.captions.edits import (
    Edit,
    filter_problems,
    parse_edits,
    read_filters,
)
from factory.catalog.captions.presence import (
    contains_literal,
    has_text,
    names_contain,
    perhaps_blank_names,
)
from factory.catalog.captions.shuffle import Shuffle
from factory.errors import ConfigError, MediaError
from factory.limits import FileSuffix, Names, Share, check_limits

# Between the texts of one table cell that holds a list of captions: the ASCII record separator,
# which no caption contains, unlike a line break.
LIST_SEPARATOR = "\x1e"

# A letter or digit, then a suffix after it in the same part of a path.
_NAMED = r"[A-Za-z0-9][^/]*\.[^/.]+$"

# Rows turned into Python texts at once where they have to be looked at one by one.
_BLOCK = 65536


@dataclass(frozen=True)
class Captions(ABC):
    """How the captions of a sample are found.

    A strategy yields texts; each is trimmed of white space, edited by the filters, trimmed
    again and, if anything is left, shuffled and prefixed. Subclasses implement `_texts`, and
    may say more quickly than row by row which samples are silent (`_blank`, `_holding`, and
    `quick = True` in the class itself, since a class below may differ).

    Attributes:
        prepend: Text put before every caption, such as a trigger word; filters leave it alone.
        filters: Edits of every caption, in order: s/regex/new/ replaces each match; any other
            entry is removed, as plain text and then as a regex. See
            `factory.catalog.captions.edits`.
        filters_file: File with more filters: .txt, one a line, or .json, a list. It lies on this
            machine, and is read once, when it is first needed.
        shuffle: Variants of each caption with its tags in other orders. None adds none.
        dropout: Probability (0 to 1) that a sample's caption is empty in an epoch.
        sidecar: Suffix of the text file read beside each sample; None if none is read.
        columns: Columns wanted from the table of the samples.
    """

    prepend: str | None = field(default=None, kw_only=True)
    filters: Sequence[str] = field(default=(), kw_only=True)
    filters_file: str | None = field(default=None, kw_only=True)
    shuffle: Shuffle | None = field(default=None, kw_only=True)
    dropout: Annotated[float, Share()] = field(default=0.0, kw_only=True)
    sidecar: str | None = field(default=None, init=False, repr=False)
    columns: tuple[str, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        """Check what every strategy shares; a subclass that overrides this calls it.

        Raises:
            ValueError: A value is wrong; a filter is named by its number.
        """
        if isinstance(self.filters, str):
            raise ConfigError(f"filters must be a list of texts, got {self.filters!r}")
        object.__setattr__(self, "filters", tuple(self.filters or ()))
        if problems := list(filter_problems(self)):
            raise ConfigError(problems)
        if self.shuffle is not None and not isinstance(self.shuffle, Shuffle):
            raise ValueError(f"shuffle must be a Shuffle or None, got {self.shuffle!r}")
        check_limits(self, "caption")

    @property
    def source(self) -> str:
        """What the raw texts hold; they are kept while this stays equal."""
        if self.sidecar is not None:
            return f"sidecar:{self.sidecar}"
        return f"columns:{'|'.join(self.columns)}" if self.columns else "none"

    @cached_property
    def edits(self) -> tuple[Edit, ...]:
        """What the filters do, those of the file last.

        Raises:
            ObjectNotFoundError: There is no such filter file.
            ConfigError: An entry is wrong; named by file and line.
        """
        own = parse_edits(self.filters, "filters entry")
        return own if self.filters_file is None else (*own, *read_filters(self.filters_file))

    def parse(self, data: bytes) -> tuple[str, ...]:
        """Return the raw texts in the bytes of a sidecar file, as `captions` takes them.

        Raises:
            MediaError: The bytes are not such a file.
        """
        return (decode_text(data),)

    def captions(self, key: str, raw: Sequence[str]) -> tuple[str, ...]:
        """Return all captions of one sample that may be drawn, perhaps none.

        Args:
            key: Storage key of the sample.
            raw: The sidecar's text as the only entry; or one text a column, in the order of
                `columns`, "" where a cell is empty; or nothing.
        """
        captions = self._edited_captions(key, raw)
        if self.shuffle is not None:
            captions = [text for each in captions for text in self.shuffle.variants(each)]
        if self.prepend and (before := self.prepend.strip()):
            captions = [f"{before} {text}" for text in captions]
        return tuple(captions)

    def plain(self, raws: Sequence[Sequence[str] | None]) -> list[str]:
        """Return the caption of each sample that has a single one, whole but for space around it.

        Sooner than `captions`, where most samples are such. "" stands for those that may not be.

        Args:
            raws: The raw texts of n samples, as `captions` takes them; None for none.
        """
        marks = self.plain_marks
        if marks is None:
            return [""] * len(raws)
        texts = [raw[0].strip() if raw and len(raw) == 1 and raw[0] else "" for raw in raws]
        joined = "".join(texts)
        if any(mark in joined for mark in marks):
            return ["" if any(mark in text for mark in marks) else text for text in texts]
        return texts

    @cached_property
    def plain_marks(self) -> str | None:
        """Marks without which a raw text is the caption, trimmed; None where it never is.

        Of equal marks and texts `plain` makes equal captions, whatever else a strategy does.
        """
        changed = self.edits or self.shuffle is not None or self.prepend
        # A class below may cut its texts in its own way.
        return None if changed or "_marks" not in vars(type(self)) else self._marks

    @property
    def _marks(self) -> str | None:
        """Marks at which a single raw text is cut into captions; None where more is done to it."""
        return None

    def silent(self, keys: pa.ChunkedArray, texts: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Mark the samples that have no caption, bool [n]; agrees with `captions` on each.

        Args:
            keys: Storage keys, large_string, n rows.
            texts: Raw texts of each, list<string>, n rows; null where there are none.
        """
        # A subclass with texts of its own may be silent where the class above it is not.
        blank = self._blank(keys, texts) if "quick" in vars(type(self)) else None
        if blank is None:
            blank, doubtful = np.zeros(len(keys), dtype=bool), np.ones(len(keys), dtype=bool)
        else:
            doubtful = ~blank & self._edited(keys, texts)
        for start in range(0, len(keys), _BLOCK):
            rows = np.flatnonzero(doubtful[start : start + _BLOCK])
            if rows.size:
                names = keys.slice(start, _BLOCK).take(rows).to_pylist()
                raws = texts.slice(start, _BLOCK).take(rows).to_pylist()
                captions = (
                    self._edited_captions(n, r or ()) for n, r in zip(names, raws, strict=True)
                )
                blank[start + rows] = [not words for words in captions]
        return blank

    @abstractmethod
    def _texts(self, key: str, raw: Sequence[str]) -> Iterable[str]:
        """Yield the captions before they are trimmed, filtered, shuffled and prefixed."""

    def _blank(self, keys: pa.ChunkedArray, texts: pa.ChunkedArray) -> NDArray[np.bool_] | None:
        """Mark samples whose texts are all blank before the filters; None asks row by row."""
        del keys, texts
        return None

    def _holding(
        self, keys: pa.ChunkedArray, texts: pa.ChunkedArray, literal: str
    ) -> NDArray[np.bool_]:
        """Mark at least the samples with a caption that holds a literal, before the filters."""
        del texts, literal
        return np.ones(len(keys), dtype=bool)

    def _edited(self, keys: pa.ChunkedArray, texts: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Mark at least the samples with a caption that a filter changes."""
        marked = np.zeros(len(keys), dtype=bool)
        for edit in self.edits:
            if edit.literal is None:
                return np.ones(len(keys), dtype=bool)
            if edit.literal:
                marked |= self._holding(keys, texts, edit.literal)
        return marked

    def _edited_captions(self, key: str, raw: Sequence[str]) -> list[str]:
        """Return the captions as filtered, blank ones left out."""
        texts = self._texts(key, raw if all(raw) else [text or "" for text in raw])
        if self.edits:
            texts = map(str.strip, texts)
            for edit in self.edits:
                texts = map(edit, texts)
        return [caption for text in texts if (caption := text.strip())]


@dataclass(frozen=True)
class RawTextCaptions(Captions):
    """Strategies whose captions are cut from raw texts: one whose texts are blank is silent."""

    @property
    def _entries(self) -> int | None:
        """How many raw texts of a sample are looked at; None for all."""
        return None

    def _blank(self, keys: pa.ChunkedArray, texts: pa.ChunkedArray) -> NDArray[np.bool_]:
        del keys
        return ~has_text(texts, self._entries)

    def _holding(
        self, keys: pa.ChunkedArray, texts: pa.ChunkedArray, literal: str
    ) -> NDArray[np.bool_]:
        del keys
        return contains_literal(texts, literal, self._entries)


@dataclass(frozen=True)
class TextFileCaptions(RawTextCaptions):
    """A text file of the same stem beside each sample.

    Attributes:
        suffix: Suffix of the text files.
        split_lines: Each line is a caption of its own; one is drawn per epoch.
    """

    quick: ClassVar[bool] = True

    suffix: Annotated[str, FileSuffix()] = ".txt"
    split_lines: bool = True

    def __post_init__(self) -> None:
        """Say which files are read."""
        super().__post_init__()
        object.__setattr__(self, "sidecar", self.suffix)

    @property
    def _marks(self) -> str:
        return "\r\n" if self.split_lines else "\r"

    def _texts(self, key: str, raw: Sequence[str]) -> Iterable[str]:
        del key
        # Only line feeds count, after any kind of line end: str.splitlines would also cut at
        # form feeds and at Unicode separators inside a sentence.
        unified = (text.replace("\r\n", "\n").replace("\r", "\n") for text in raw)
        if not self.split_lines:
            return unified
        return (line for text in unified for line in text.split("\n"))


@dataclass(frozen=True)
class FilenameCaptions(Captions):
    """The sample's file name without folders and suffix, underscores read as spaces."""

    quick: ClassVar[bool] = True

    def _texts(self, key: str, raw: Sequence[str]) -> Iterable[str]:
        del raw
        return [PurePosixPath(key).stem.replace("_", " ")]

    def _blank(self, keys: pa.ChunkedArray, texts: pa.ChunkedArray) -> NDArray[np.bool_]:
        del texts
        blank = np.zeros(len(keys), dtype=bool)
        rows = perhaps_blank_names(keys)
        # Of a name such as "a_.jpg" a quick look at the letters before its suffix is enough.
        rows = rows[~as_mask(pc.match_substring_regex(keys.take(rows), _NAMED))]
        names = keys.take(rows).to_pylist()
        blank[rows] = [not any(text.strip() for text in self._texts(name, ())) for name in names]
        return blank

    def _holding(
        self, keys: pa.ChunkedArray, texts: pa.ChunkedArray, literal: str
    ) -> NDArray[np.bool_]:
        del texts
        return names_contain(keys, literal)


@dataclass(frozen=True)
class InstanceCaptions(Captions):
    """The same prompt, or the same list of prompts, for every sample.

    Attributes:
        prompt: The prompt, or a list of prompts. Blank ones are left out.
    """

    quick: ClassVar[bool] = True

    prompt: str | Sequence[str]

    def __post_init__(self) -> None:
        """Check that something is left of the prompts.

        Raises:
            ValueError: There is no prompt, or only blank ones.
        """
        prompts = (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt or ())
        texts = tuple(str(text).strip() for text in prompts)
        if not any(texts):
            raise ValueError(f"prompt must be a text or texts, not blank; got {self.prompt!r}")
        object.__setattr__(self, "prompt", tuple(text for text in texts if text))
        super().__post_init__()

    def silent(self, keys: pa.ChunkedArray, texts: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Mark all samples or none, since they all say the same; see `Captions.silent`."""
        del texts
        return np.full(len(keys), not self.captions("", ()))

    def _texts(self, key: str, raw: Sequence[str]) -> Iterable[str]:
        del key, raw
        return self.prompt


@dataclass(frozen=True)
class ColumnCaptions(RawTextCaptions):
    """Columns of the samples' own table: Parquet, CSV or Hugging Face.

    Attributes:
        columns: Columns that hold captions. The fallback columns are added at their end.
        fallback_columns: Columns used where all of the above are empty.
    """

    quick: ClassVar[bool] = True

    columns: Annotated[tuple[str, ...], Names(1)] = ("caption",)
    fallback_columns: Annotated[tuple[str, ...], Names()] = ()

    def __post_init__(self) -> None:
        """Join the columns to read, each once.

        Raises:
            ValueError: No column is named.
        """
        fallback = tuple(self.fallback_columns)
        object.__setattr__(self, "columns", tuple(dict.fromkeys((*self.columns, *fallback))))
        object.__setattr__(self, "fallback_columns", fallback)
        super().__post_init__()

    @property
    def _entries(self) -> int:
        return len(self.columns)

    @property
    def _marks(self) -> str:
        return LIST_SEPARATOR

    def _texts(self, key: str, raw: Sequence[str]) -> Iterable[str]:
        del key
        return listed(self.columns, raw, self.fallback_columns)


def listed(names: Sequence[str], cells: Sequence[str], fallback: Sequence[str]) -> Iterator[str]:
    """Yield the texts of cells, those of fallbacks only where all the others are blank.

    Args:
        names: What each cell is called.
        cells: The cells, each one text or several with `LIST_SEPARATOR` between.
        fallback: Names of the fallbacks.
    """
    if len(cells) == 1:
        return iter(cells[0].split(LIST_SEPARATOR))
    pairs = list(zip(names, cells, strict=False))
    first = [text for name, text in pairs if name not in fallback]
    # The separator is white space itself.
    if not any(text.strip() for text in first):
        first = [text for name, text in pairs if name in fallback]
    return (part for text in first for part in text.split(LIST_SEPARATOR))


def decode_text(data: bytes) -> str:
    """Return the text of a caption file, which is UTF-8 with or without a byte order mark.

    Raises:
        MediaError: The bytes are not UTF-8, or no text; says where, and how to convert the file.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        position = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        guess = "UTF-16" if utf16 else "WINDOWS-1252"
        raise MediaError(
            "caption not UTF-8",
            f"byte 0x{data[position]:02x} at position {position}; if the file is {guess}, "
            f"convert it with: iconv -f {guess} -t UTF-8 FILE > NEW",
        ) from error
    if "\0" in text:
        raise MediaError(
            "caption not text",
            f"a NUL at position {data.index(0)}; if the file is UTF-16 without a byte order mark, "
            "convert it with: iconv -f UTF-16LE -t UTF-8 FILE > NEW",
        )
    return text
