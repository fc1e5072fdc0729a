"""Backends of streams: datasets too large to download, trained on while they are read."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import xxhash

from factory.backends.image import ImageBackend
from factory.catalog.captions.caption_reader import CaptionColumn
from factory.catalog.captions.sources import Captions, ColumnCaptions
from factory.catalog.facts import Facts
from factory.catalog.scan.journal import Journal
from factory.catalog.scan.media_type import MediaType, Pictures
from factory.engine.engine import Engine
from factory.errors import PlanError
from factory.limits import AtLeast
from factory.storage.base import Storage
from factory.storage.huggingface import HuggingFaceStorage
from factory.storage.huggingface_stream import RowStream

# Raised whenever the same settings would give other batches than before.
STREAM_VERSION = 1
# Rows read, measured and decided at once where none are shuffled: enough to spread the cost of
# numpy over, few enough to hold.
BLOCK_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class StreamBackend(ImageBackend):
    """Pictures of a Hugging Face dataset, read in its order and never stored.

    Samples wait in a buffer until their bucket fills a global batch. A bucket whose first
    sample has waited for `buffer` rows goes out all the same, filled by repeats of its own.

    Attributes:
        samples: Samples of one pass in an epoch; None: as many as the dataset says it has. The
            stream goes on where the epoch before ended, and begins anew at its end.
        shuffle_buffer: Rows shuffled among themselves, and shards among themselves; 0: dataset's
            order.
        buffer: Rows a sample may wait for others of its bucket.
        buffer_mb: Memory that waiting pictures may hold, MiB. They are held as they are stored.
    """

    what: ClassVar[str] = "row"

    storage: Storage
    caption: Captions = field(default_factory=ColumnCaptions)
    samples: Annotated[int | None, AtLeast(1)] = None
    shuffle_buffer: Annotated[int, AtLeast(0)] = 1000
    buffer: Annotated[int, AtLeast(1)] = 4096
    buffer_mb: Annotated[float, AtLeast(1)] = 1024.0

    def __post_init__(self) -> None:
        """Check what a stream cannot do.

        Raises:
            TypeError: The storage is no Hugging Face dataset.
            ValueError: A setting that only stored samples can follow, or a number out of range.
        """
        super().__post_init__()
        where = f"data.backends.{self.name}"
        if not isinstance(self.storage, HuggingFaceStorage):
            raise TypeError(
                f"{where} is a stream, which reads Hugging Face datasets only; set "
                f"storage@{where}=huggingface and {where}.storage.dataset=NAME"
            )
        if self.caption.sidecar is not None:
            raise ValueError(
                f"{where}: a stream has no caption files beside its samples; set "
                f"data/caption@{where}=huggingface (a column), filename or instance"
            )
        if self.max_samples is not None:
            raise ValueError(
                f"{where}.max_samples chooses among all samples, which a stream never sees; "
                f"set {where}.samples for the length of an epoch"
            )

    @property
    def medium(self) -> MediaType:
        """What the rows are; a stream is not looked through for faces before it is trained on."""
        return Pictures(limits=self.limits)

    @property
    def block(self) -> int:
        """Rows read and shuffled together; state is kept at their beginnings."""
        return self.shuffle_buffer or BLOCK_ROWS

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the dataset that captions and filters are made from."""
        filters = (each.column for each in self.filters)
        return tuple(dict.fromkeys([*self.caption.columns, *filters]))

    @property
    def identity(self) -> str:
        """Hash of everything that shapes the batches beside the plan, 32 hex digits."""
        shaping = (
            STREAM_VERSION, self.storage.identity, self.geometry, self.caption, self.filters,
            self.composite, self.block, bool(self.shuffle_buffer), self.buffer, self.buffer_mb,
        )  # fmt: skip
        return xxhash.xxh3_128_hexdigest(repr(shaping).encode())

    def open(self) -> RowStream:
        """Open the dataset; no row is read yet.

        Raises:
            StorageError: It cannot be reached.
            TableError: It lacks the split or a column that is wanted, or a column of captions
                holds no texts.
        """
        if not isinstance(self.storage, HuggingFaceStorage):  # refused before
            raise TypeError(f"a stream cannot read {self.storage!r}")
        stream = RowStream(self.storage, self.columns)
        for column in self.caption_columns(stream):
            column.check(self.caption_option)
        return stream

    @property
    def caption_option(self) -> str:
        """The setting that names the columns of captions."""
        return f"data.backends.{self.name}.caption.columns"

    def caption_columns(self, stream: RowStream) -> list[CaptionColumn]:
        """Return the columns that captions are taken from."""
        return [
            CaptionColumn(name, stream.types[name], stream.class_names[name], self.storage.identity)
            for name in self.caption.columns
        ]

    def epoch_samples(self, stream: RowStream) -> int:
        """Return the samples of one pass in an epoch.

        Raises:
            PlanError: They are not set, and the dataset does not say how many rows it has.
        """
        found = self.samples or stream.length
        if found is None:
            raise PlanError(
                f"{self.storage.identity} does not say how many rows it has; set "
                f"data.backends.{self.name}.samples to the samples of one epoch"
            )
        return found

    def scan(self, known: Facts | None, engine: Engine, journal: Journal | None = None) -> Facts:
        """Refuse: the rows of a stream are measured while they are read.

        Raises:
            TypeError: Always.
        """
        del known, engine, journal
        raise TypeError(f"backend {self.name!r} is a stream, which is never scanned")
