"""A backend made ready: its catalog, and the embeddings its batches are gathered from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.embeds import ImageEmbedBackend, TextEmbedBackend
from factory.backends.image import SampleBackend
from factory.backends.picture import ByteReader, Picture, ShapePicture
from factory.bulk import Engine
from factory.catalog.catalog import Catalog
from factory.catalog.cuts import CutArrays
from factory.catalog.misfortune import is_own
from factory.errors import MediaError


@dataclass
class Source:
    """A backend made ready for batches.

    Attributes:
        backend: The backend.
        catalog: Its samples.
        latents: Where encoded pictures are kept, or None to read pixels.
        text: Where encoded captions are kept, or None to give texts only.
        conditioning: For each conditioning backend by name: its source, and the row there of
            each row here, int64 [n], -1 where there is none.
    """

    backend: SampleBackend
    catalog: Catalog
    latents: ImageEmbedBackend | None = None
    text: TextEmbedBackend | None = None
    conditioning: dict[str, tuple["Source", NDArray[np.int64]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.backend.name

    def picture(self, row: int) -> Picture:
        """Describe the picture of a row: which object, and how it is cut."""
        return self.pictures(np.array([row]))[0]

    def pictures(self, rows: NDArray[np.int64], cuts: CutArrays | None = None) -> list[Picture]:
        """Describe the pictures of some rows, in their order.

        Args:
            rows: Rows of the catalog, int64 [n].
            cuts: How they are cut, where that is known already.
        """
        facts = self.catalog.facts
        pixels = facts.take("width", rows).astype(np.int64) * facts.take("height", rows)
        columns = (
            np.asarray(rows).tolist(),
            facts.texts("key", rows),
            facts.texts("etag", rows),
            (self.catalog.cuts(rows) if cuts is None else cuts).each(),
            pixels.tolist(),
            facts.take("size", rows).tolist(),
            facts.take("frames", rows).tolist(),
        )
        return list(map(Picture, *columns))

    def kept_pictures(self) -> "KeptPictures":
        """Return the pictures of all kept rows, bucket by bucket, made when asked for."""
        return KeptPictures(self)

    def samples(
        self, rows: NDArray[np.int64], engine: Engine
    ) -> "Iterator[NDArray[np.uint8] | Unusable]":
        """Yield the pixels of some rows in their order, [H, W, 3] or [F, H, W, 3] of clips.

        Objects of a remote storage are asked for side by side, and decoded as they arrive.

        Raises:
            StorageError: The storage failed, and not one object of it; the note names the
                sample that was read.
        """
        reader, pictures = self.backend.reader, self.pictures(rows)
        outcomes: Iterator[tuple[Any, NDArray[np.uint8] | Exception]]
        if reader.storage.remote and reader.takes_bytes:
            spans = [(picture.key, 0, None) for picture in pictures]
            arriving = zip(pictures, reader.storage.read_many(spans), strict=True)
            outcomes = engine.map(ShapePicture(cast("ByteReader", reader)), arriving)
        else:
            outcomes = engine.map(reader, pictures)
        for picture, (_, outcome) in zip(pictures, outcomes, strict=True):
            yield self._judged(picture, outcome) if isinstance(outcome, Exception) else outcome

    def _judged(self, picture: Picture, error: Exception) -> "Unusable":
        """Say what is wrong with one picture; raise what is not its own fault."""
        if isinstance(error, MediaError):
            return Unusable(self.name, picture.key, "decode", str(error))
        if is_own(error, self.backend.storage):
            return Unusable(self.name, picture.key, "read", str(error))
        error.add_note(f"while reading {picture.key!r} of backend {self.name!r}")
        raise error

    def read_latents(
        self, rows: NDArray[np.int64], cuts: CutArrays | None = None
    ) -> dict[str, torch.Tensor]:
        """Gather encoded pictures of one bucket, in the order of the rows: fields [B, ...].

        Args:
            rows: Rows of the catalog, int64 [B].
            cuts: How they are cut, where that is known already.

        Raises:
            CacheError: A latent is missing or damaged.
            TypeError: The backend has no encoder.
        """
        if self.latents is None:
            raise TypeError(f"backend {self.name!r} has no image_embeds backend")
        return self.latents.gather(self.backend.reader, self.pictures(rows, cuts))

    def read_text(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Gather encoded captions in their order: fields [B, ...]; empty without an encoder."""
        return {} if self.text is None else self.text.gather(captions)


@dataclass(frozen=True)
class Unusable:
    """Why a sample cannot be used, through no fault of anything but itself.

    Attributes:
        backend: Name of the backend whose object failed.
        key: Storage key of that object.
        stage: What failed: "read" or "decode".
        reason: The error, as text.
    """

    backend: str
    key: str
    stage: str
    reason: str


class KeptPictures(Sequence[Picture]):
    """The pictures of a source's kept rows, bucket by bucket; none is held."""

    def __init__(self, source: Source) -> None:
        """Take the rows as they are decided now."""
        self._source, self._rows = source, source.catalog.decisions.order

    def __len__(self) -> int:
        """Return the number of kept rows."""
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> list[Picture]: ...
    def __getitem__(self, index: int | slice) -> Picture | list[Picture]:
        """Describe the picture at a place, or those of a span in one go."""
        if isinstance(index, slice):
            return self._source.pictures(self._rows[index])
        return self._source.picture(int(self._rows[index]))
