"""A backend made ready: its catalog, and the embeddings its batches are gathered from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.embeds import ImageEmbedBackend, TextEmbedBackend
from factory.backends.image import SampleBackend
from factory.backends.picture import Picture
from factory.bulk import Engine
from factory.catalog.catalog import Catalog
from factory.errors import ObjectNotFoundError


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

    def pictures(self, rows: NDArray[np.int64]) -> list[Picture]:
        """Describe the pictures of some rows, in their order."""
        facts = self.catalog.facts
        pixels = facts.take("width", rows).astype(np.int64) * facts.take("height", rows)
        columns = (
            np.asarray(rows).tolist(),
            facts.texts("key", rows),
            facts.texts("etag", rows),
            self.catalog.cuts(rows).each(),
            pixels.tolist(),
            facts.take("size", rows).tolist(),
            facts.take("frames", rows).tolist(),
        )
        return list(map(Picture, *columns))

    def kept_pictures(self) -> "KeptPictures":
        """Return the pictures of all kept rows, bucket by bucket, made when asked for."""
        return KeptPictures(self)

    def read_pixels(self, rows: NDArray[np.int64], engine: Engine) -> torch.Tensor:
        """Read samples of one bucket: uint8 RGB [B, H, W, 3], in the order of the rows.

        Clips come as [B, F, H, W, 3].

        Raises:
            MediaError: A picture is damaged; the note names it and how to drop it.
            StorageError: A picture cannot be read.
        """
        batch: torch.Tensor | None = None
        outcomes = engine.map(self.backend.reader, self.pictures(rows))
        for place, (picture, outcome) in enumerate(outcomes):
            if isinstance(outcome, Exception):
                outcome.add_note(
                    f"while reading {picture.key!r} of backend {self.name!r}; {_advice(outcome)}"
                )
                raise outcome
            if batch is None:
                batch = torch.empty((len(rows), *outcome.shape), dtype=torch.uint8)
            # Copied while others are still being decoded, and let go of.
            batch[place] = torch.from_numpy(outcome)
        if batch is None:
            raise ValueError(f"backend {self.name!r}: a batch needs at least one row")
        return batch

    def read_latents(self, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Gather encoded pictures of one bucket, in the order of the rows: fields [B, ...]."""
        if self.latents is None:
            raise TypeError(f"backend {self.name!r} has no image_embeds backend")
        return self.latents.gather(self.backend.reader, self.pictures(rows))

    def read_text(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Gather encoded captions in their order: fields [B, ...]; empty without an encoder."""
        return {} if self.text is None else self.text.gather(captions)


def _advice(error: Exception) -> str:
    """Say how the next run avoids an error of one picture."""
    if isinstance(error, ObjectNotFoundError):
        return "the next start lists again, and leaves out what is gone"
    return "to drop such files at the scan, set metadata.verify=true"


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
