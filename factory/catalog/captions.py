"""What a sample says: from raw texts beside it to the captions it can be trained with.

A strategy says where its raw text comes from (a file beside the sample, columns of a table,
or nowhere) and turns it into captions without any I/O of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from factory.errors import MediaError

# Between the texts of one table cell that holds a list of captions: the ASCII record separator,
# which no caption contains, unlike a line break.
LIST_SEPARATOR = "\x1e"

_MASK = 2**64 - 1
# The golden ratio as a 64-bit fraction, and the multipliers of Stafford's mix 13 (splitmix64).
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


@dataclass(frozen=True)
class Captions(ABC):
    """How the captions of a sample are found.

    Captions are trimmed of white space and line ends; blank ones are left out.

    Attributes:
        prepend: Text put before every caption and a space, such as a trigger word.
        sidecar: Suffix of the text file read beside each sample; None if none is read.
        columns: Columns wanted from the table of the samples.
    """

    prepend: str | None = field(default=None, kw_only=True)
    sidecar: str | None = field(default=None, init=False, repr=False)
    columns: tuple[str, ...] = field(default=(), init=False, repr=False)

    @property
    def source(self) -> str:
        """What the raw texts hold; they are kept while this stays equal."""
        if self.sidecar is not None:
            return f"sidecar:{self.sidecar}"
        return f"columns:{'|'.join(self.columns)}" if self.columns else "none"

    def captions(self, key: str, raw: Sequence[str]) -> tuple[str, ...]:
        """Return all captions of one sample, perhaps none.

        Args:
            key: Storage key of the sample.
            raw: The sidecar's text as the only entry; or one text a column, in the order of
                `columns`, "" where a cell is empty; or nothing.
        """
        before = (self.prepend or "").strip()
        texts = (text.strip() for text in self._texts(key, raw))
        return tuple(f"{before} {text}" if before else text for text in texts if text)

    @abstractmethod
    def _texts(self, key: str, raw: Sequence[str]) -> Iterable[str]:
        """Yield the captions before they are trimmed and prefixed."""


@dataclass(frozen=True)
class TextFileCaptions(Captions):
    """A text file of the same stem beside each sample.

    Attributes:
        suffix: Suffix of the text files, with its dot.
        split_lines: Whether each line is a caption of its own.
    """

    suffix: str = ".txt"
    split_lines: bool = True

    def __post_init__(self) -> None:
        """Check the suffix.

        Raises:
            ValueError: The suffix does not start with a dot.
        """
        if not self.suffix.startswith("."):
            raise ValueError(f"suffix must start with a dot, such as .txt; got {self.suffix!r}")
        object.__setattr__(self, "sidecar", self.suffix)

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

    def _texts(self, key: str, raw: Sequence[str]) -> Iterable[str]:
        del raw
        return [PurePosixPath(key).stem.replace("_", " ")]


@dataclass(frozen=True)
class InstanceCaptions(Captions):
    """The same prompt, or the same list of prompts, for every sample.

    Attributes:
        prompt: One prompt or several; blank ones are left out.
    """

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

    def _texts(self, key: str, raw: Sequence[str]) -> Iterable[str]:
        del key, raw
        return self.prompt


@dataclass(frozen=True)
class ColumnCaptions(Captions):
    """Columns of the samples' own table: Parquet, CSV or Hugging Face.

    Attributes:
        columns: Columns that hold captions, then the fallback columns.
        fallback_columns: Columns used for a sample whose other columns are all empty.
    """

    columns: tuple[str, ...] = ("caption",)
    fallback_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Join the columns to read, each once.

        Raises:
            ValueError: No column is named.
        """
        fallback = tuple(self.fallback_columns)
        columns = tuple(dict.fromkeys((*self.columns, *fallback)))
        if not all(isinstance(name, str) and name for name in columns) or not columns:
            raise ValueError(f"columns must name at least one column, got {self.columns!r}")
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "fallback_columns", fallback)

    def _texts(self, key: str, raw: Sequence[str]) -> Iterable[str]:
        del key
        cells = dict(zip(self.columns, raw, strict=False))
        first = [text for name, text in cells.items() if name not in self.fallback_columns]
        if not any(text.strip(LIST_SEPARATOR).strip() for text in first):
            first = [text for name, text in cells.items() if name in self.fallback_columns]
        return (part for text in first for part in text.split(LIST_SEPARATOR))


def decode_text(data: bytes) -> str:
    """Return the text of a caption file, which is UTF-8 with or without a byte order mark.

    Raises:
        MediaError: The bytes are not UTF-8; says where, and how to convert the file.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        position = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        guess = "UTF-16" if utf16 else "WINDOWS-1252"
        raise MediaError(
            "caption not UTF-8",
            f"byte 0x{data[position]:02x} at position {position}; if the file is {guess}, "
            f"convert it with: iconv -f {guess} -t UTF-8 FILE > NEW",
        ) from error


def choose(captions: Sequence[str], *, seed: int, epoch: int, row: int) -> str:
    """Return the caption a sample has in an epoch: a function of (seed, epoch, row) alone.

    The three numbers go one after the other through the mixing steps of splitmix64; the high
    bits of the result pick the entry, each with equal chance to within n / 2**64.

    Raises:
        ValueError: There is no caption to choose from.
    """
    if not captions:
        raise ValueError(f"row {row} has no caption to choose from; drop it as 'no caption'")
    state = 0
    for number in (seed, epoch, row):
        state = _mix((state ^ (number & _MASK)) + _GOLDEN & _MASK)
    return captions[state * len(captions) >> 64]


def _mix(state: int) -> int:
    state = (state ^ state >> 30) * _MIX_1 & _MASK
    state = (state ^ state >> 27) * _MIX_2 & _MASK
    return state ^ state >> 31
