"""Reading of samples as pixels: from a stored object to the shape of its bucket."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from factory.catalog.crops import CropArrays, SampleCrop
from factory.catalog.facts import SIZE_DIFFERS
from factory.engine.engine import Engine
from factory.engine.pipeline import Lookahead
from factory.errors import MediaError, StorageError
from factory.media.composite import Composite
from factory.media.crop import fit
from factory.media.decode import DECODE_VERSIONS, decode
from factory.media.decode_limits import DecodeLimits
from factory.media.headers import MAX_PIXELS
from factory.records import UNKNOWN_SIZE
from factory.storage.base import Storage


@dataclass(frozen=True, slots=True)
class Picture:
    """Which object, a picture or a video, and how it is cut.

    Attributes:
        row: Row in its catalog.
        key: Storage key.
        etag: Changes whenever the content does.
        crop: How it is resized and cut.
        width: Its width as the catalog has it, px; 0 where that is not known.
        height: Its height likewise.
        size: Its bytes, or `UNKNOWN_SIZE`.
        frames: Its frames as the catalog has them.
    """

    row: int
    key: str
    etag: str
    crop: SampleCrop
    width: int = 0
    height: int = 0
    size: int = UNKNOWN_SIZE
    frames: int = 1

    @property
    def pixels(self) -> int:
        """Its width x height as the catalog has them, px."""
        return self.width * self.height

    def check(self, width: int, height: int) -> None:
        """Refuse a file of another size than the catalog has: its cut would stretch it.

        Every reader calls this with what it finds before it resizes anything. Frames need no
        such check: a clip is taken by how many its video turns out to have.

        Args:
            width: Width of the file after orientation, or of the part of it that is used, px.
            height: Height likewise.

        Raises:
            MediaError: They differ; both are named.
        """
        if self.pixels and (width, height) != (self.width, self.height):
            turned = " (turned by its orientation)" if (height, width) == self.sides else ""
            raise MediaError(
                SIZE_DIFFERS,
                f"{self.width} x {self.height} px by its facts, {width} x {height} px in the "
                f"file{turned}",
            )

    def check_whole(self, composite: Composite) -> Callable[[int, int], None]:
        """Return `check` for the size of a whole file, of which a part is used."""

        def check(width: int, height: int) -> None:
            self.check(width // composite.image_count, height)

        return check

    @property
    def sides(self) -> tuple[int, int]:
        """Its width and height as the catalog has them, px."""
        return self.width, self.height


@dataclass(frozen=True)
class PictureColumns:
    """Some pictures, column by column, which is how a million of them are looked at.

    Attributes:
        rows: Rows in their catalog, int64 [n].
        keys: Storage keys.
        etags: As in `Picture`.
        crops: How they are resized and cut.
        widths: As in `Picture`, integers [n].
        heights: As in `Picture`, integers [n].
        sizes: Their bytes, or `UNKNOWN_SIZE`, int64 [n].
        frames: As in `Picture`, integers [n].
    """

    rows: NDArray[np.int64]
    keys: Sequence[str]
    etags: Sequence[str]
    crops: CropArrays
    widths: NDArray[Any]
    heights: NDArray[Any]
    sizes: NDArray[np.int64]
    frames: NDArray[Any]

    @classmethod
    def of(cls, pictures: Sequence[Picture]) -> "PictureColumns":
        """Take pictures apart."""
        crops = [picture.crop for picture in pictures]
        pairs = (
            [c.intermediary for c in crops],
            [c.offset for c in crops],
            [c.target for c in crops],
        )
        return cls(
            np.array([picture.row for picture in pictures], np.int64),
            [picture.key for picture in pictures],
            [picture.etag for picture in pictures],
            CropArrays(*(np.array(pair, np.int32).reshape(-1, 2) for pair in pairs)),
            np.array([picture.width for picture in pictures], np.int64),
            np.array([picture.height for picture in pictures], np.int64),
            np.array([picture.size for picture in pictures], np.int64),
            np.array([picture.frames for picture in pictures], np.int64),
        )

    def each(self) -> list[Picture]:
        """Return one `Picture` a row."""
        numbers = (self.widths, self.heights, self.sizes, self.frames)
        lists = (column.tolist() for column in numbers)
        columns = (self.rows.tolist(), self.keys, self.etags, self.crops.each(), *lists)
        return list(map(Picture, *columns))


class MediaReader(Protocol):
    """How samples of a backend become pixels; a picklable value."""

    @property
    def takes_bytes(self) -> bool:
        """Whether it is a `ByteReader`: bytes may be asked for by others, many at once."""

    @property
    def storage(self) -> Storage:
        """Where the objects are."""

    @property
    def recipe(self) -> Mapping[str, object]:
        """What shapes the pixels of every sample alike, the storage's identity included."""

    def parts(self, pictures: PictureColumns) -> Mapping[str, Sequence[Any] | NDArray[Any]]:
        """Return what shapes the pixels of each sample beside the recipe, as columns."""

    def __call__(self, picture: Picture) -> NDArray[np.uint8]:
        """Return RGB pixels of the target size: [H, W, 3], or [F, H, W, 3] of a clip."""


class ByteReader(MediaReader, Protocol):
    """A reader that goes from the whole bytes of an object to pixels."""

    @property
    def limits(self) -> DecodeLimits:
        """What an object may ask for; one that is too large is not read."""

    def shaped(self, data: bytes, picture: Picture) -> NDArray[np.uint8]:
        """Return RGB pixels of the target size from a sample's bytes."""


def cut_parts(pictures: PictureColumns) -> dict[str, Sequence[Any] | NDArray[Any]]:
    """Return which objects samples are and how they are cut, as columns of a recipe."""
    crops = pictures.crops
    return {
        "key": pictures.keys,
        "etag": pictures.etags,
        "resize": crops.intermediary,
        "crop": crops.offset,
        "target": crops.target,
    }


@dataclass(frozen=True)
class ReadPicture:
    """Reads, decodes, resizes and cuts one picture; picklable, so that any engine can run it.

    Attributes:
        storage: Where the objects are.
        decode: "fast" decodes JPEGs at a reduced scale, "exact" whole and resizes by Lanczos,
            "nearest" whole and takes nearest pixels.
        composite: Which part of each picture is the sample.
        limits: What decoding one may take.
    """

    storage: Storage
    decode: str = "fast"
    composite: Composite = field(default_factory=Composite)
    limits: DecodeLimits = field(default_factory=DecodeLimits)

    def __post_init__(self) -> None:
        """Refuse a mode there is not."""
        if self.decode not in DECODE_VERSIONS:
            raise ValueError(
                f"decode must be one of {', '.join(DECODE_VERSIONS)}, got {self.decode!r}"
            )

    @property
    def takes_bytes(self) -> bool:
        """Bytes are all it takes."""
        return True

    @property
    def recipe(self) -> Mapping[str, object]:
        """What shapes the pixels of every picture."""
        shared = {"decode": DECODE_VERSIONS[self.decode], "storage": self.storage.identity}
        return {**shared, **self.composite.parts}

    def parts(self, pictures: PictureColumns) -> Mapping[str, Sequence[Any] | NDArray[Any]]:
        """Return what shapes the pixels of each picture, as columns."""
        return cut_parts(pictures)

    def __call__(self, picture: Picture) -> NDArray[np.uint8]:
        """Return RGB pixels [H, W, 3] of the target size.

        Raises:
            MediaError: The object is not the picture it claims to be, or beyond a limit.
            StorageError: It cannot be read.
        """
        self.limits.check_file(picture.size)
        return self.shaped(self.storage.read(picture.key), picture)

    def shaped(self, data: bytes, picture: Picture) -> NDArray[np.uint8]:
        """Return RGB pixels [H, W, 3] of the target size from a picture's bytes.

        Raises:
            MediaError: They are not the picture they claim to be, or one of another size.
        """
        crop, fast = picture.crop, self.decode == "fast"
        # What the scan let in by a limit of its own is no bomb here.
        most = max(MAX_PIXELS, picture.pixels * self.composite.image_count)
        # At a reduced size the border between two strips may lie inside a pixel.
        enough = crop.intermediary if fast and not self.composite else None

        check = picture.check_whole(self.composite)
        whole = decode(data, at_least=enough, max_pixels=most, limits=self.limits, check=check)
        pixels = self.composite.of(whole)
        return fit(
            pixels, crop.intermediary, crop.offset, crop.target,
            exact=self.decode == "exact", nearest=self.decode == "nearest",
        )  # fmt: skip


@dataclass(frozen=True)
class ShapePicture:
    """Turns bytes that were read, or why they were not, into pixels; picklable.

    Attributes:
        reader: How the pictures are decoded and cut.
    """

    reader: ByteReader

    def __call__(
        self, read: tuple[Picture, bytes | StorageError | MediaError]
    ) -> NDArray[np.uint8]:
        """Return RGB pixels [H, W, 3] of the target size.

        Raises:
            MediaError: The object is not the picture it claims to be, or beyond a limit.
            StorageError: It could not be read.
        """
        picture, data = read
        if isinstance(data, StorageError | MediaError):
            raise data
        return self.reader.shaped(data, picture)


def read_pixels(
    reader: MediaReader, runs: Iterable[Sequence[Picture]], engine: Engine
) -> Generator[NDArray[np.uint8] | Exception, None, None]:
    """Yield the pixels of pictures in their order, or why there are none.

    Objects of a remote storage are asked for side by side, and decoded as they arrive; others
    are read and decoded in one go.

    Args:
        reader: How they become pixels.
        runs: The pictures, in runs of those that are asked for at once. They are taken as
            there is room, each while the one before it is still on its way.
        engine: Where they are decoded.
    """
    outcomes: Generator[tuple[Any, NDArray[np.uint8] | Exception], None, None]
    if reader.storage.remote and reader.takes_bytes:
        read = cast("ByteReader", reader)
        outcomes = engine.map(ShapePicture(read), _arriving(read, runs))
    else:
        outcomes = engine.map(reader, chain.from_iterable(runs))
    with closing(outcomes):
        for _, outcome in outcomes:
            yield outcome


def _arriving(
    reader: ByteReader, runs: Iterable[Sequence[Picture]]
) -> Iterator[tuple[Picture, bytes | StorageError | MediaError]]:
    """Yield pictures with their bytes; each run is asked for while the one before arrives."""

    def begin(pictures: Sequence[Picture]) -> tuple[Any, ...]:
        """Ask for the objects that are not too large."""
        refused = dict(_too_large(reader.limits, pictures))
        spans = [(one.key, 0, None) for n, one in enumerate(pictures) if n not in refused]
        return pictures, refused, reader.storage.read_many(spans)

    begun = Lookahead(begin, runs, most=2)
    try:
        while (first := begun.head()) is not None:
            yield from _in_order(*first)
            begun.pop()
    finally:
        for *_, data in begun.drop():
            data.close()


def _too_large(
    limits: DecodeLimits, pictures: Sequence[Picture]
) -> Iterator[tuple[int, MediaError]]:
    """Yield (place, error) of the pictures whose files are not to be read."""
    for place, picture in enumerate(pictures):
        try:
            limits.check_file(picture.size)
        except MediaError as error:
            yield place, error


def _in_order(
    pictures: Sequence[Picture],
    refused: Mapping[int, MediaError],
    data: Generator[bytes | StorageError, None, None],
) -> Iterator[tuple[Picture, bytes | StorageError | MediaError]]:
    """Yield each picture with its bytes, or why there are none."""
    for place, picture in enumerate(pictures):
        yield picture, refused[place] if place in refused else next(data)
