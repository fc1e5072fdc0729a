"""A backend made ready: its catalog, and the embeddings its batches are gathered from."""

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import compress

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.conditioning import RANDOM, sampling_of
from factory.backends.embeddings import (
    ImageEmbedBackend,
    PictureEmbedBackend,
    TextEmbedBackend,
    VisionEmbedBackend,
)
from factory.backends.encode_missing import (
    EncodeCounts,
    forget_epochs,
    of_other_epoch,
    read_captions,
)
from factory.backends.encode_mode import EncodeMode
from factory.backends.image import SampleBackend
from factory.backends.pixels import Picture, PictureColumns, read_pixels
from factory.cache.format.recipe import canonical
from factory.cache.gather.gather_plan import GatherPlan
from factory.cache.gather.gather_rows import Allocator, new_tensor
from factory.cache.row_locations import (
    KeysOf,
    LocationFiles,
    RowLocations,
    RowQuery,
    locate_rows,
    locate_rows_lazily,
)
from factory.cache.store import UnusableRowsError
from factory.catalog.captions.draws import conditioning_draw
from factory.catalog.catalog import Catalog, SampleCaptions
from factory.catalog.crops import CropArrays
from factory.catalog.scan.sample_fault import sample_fault
from factory.encoder.pixels import RawPixels
from factory.engine.engine import Engine
from factory.sampling.fingerprint import hash_rows


@dataclass
class PreparedBackend:
    """A backend made ready for batches.

    Attributes:
        backend: The backend.
        catalog: Its samples.
        latents: Where encoded pictures are kept, or None to read pixels.
        text: Where encoded captions are kept, or None to give texts only.
        vision: Where image embeddings to condition on are kept, or None for none.
        locations: Where its rows lie in the stores that were asked, by their names. Of captions,
            those that are `SampleCaptions.own`, and none any more once a row was not usable there.
        conditioning: For each conditioning backend by name: its source, and the row there of
            each row here, int64 [n], -1 where there is none.
        encode_mode: When its pictures are encoded.
        encode_text_mode: When its captions are encoded.
        redraws: Whether its random cuts are drawn anew in each epoch: always with such an
            `encode_mode`, and for partners that are cut as samples with one are.
    """

    backend: SampleBackend
    catalog: Catalog
    latents: ImageEmbedBackend | None = None
    text: TextEmbedBackend | None = None
    vision: VisionEmbedBackend | None = None
    locations: dict[str, RowLocations] = field(default_factory=dict)
    conditioning: dict[str, tuple["PreparedBackend", NDArray[np.int64]]] = field(
        default_factory=dict
    )
    encode_mode: EncodeMode = EncodeMode.precompute
    encode_text_mode: EncodeMode = EncodeMode.precompute
    redraws: bool = False

    def __post_init__(self) -> None:
        """Let the mode say whether cuts are drawn anew."""
        self.redraws = self.redraws or self.encode_mode.redraws

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.backend.name

    @property
    def gives_latents(self) -> bool:
        """Whether its samples are latents in batches; what is kept may be pixels as they are."""
        return self.latents is not None and not isinstance(self.latents.encoder, RawPixels)

    @property
    def identity(self) -> str:
        """What its rows are, in which order buckets have them, and how each is cut."""
        catalog = self.catalog
        order = catalog.decisions.order
        clips = hash_rows(catalog.facts.take("frames", order))  # where they begin
        return f"{catalog.identity}/{hash_rows(order)}/{catalog.shapes.identity}/{clips}"

    def crops(self, rows: NDArray[np.int64], epoch: int) -> CropArrays:
        """Return how some rows are cut in an epoch, in their order."""
        return self.catalog.crops(rows, epoch if self.redraws else 0)

    def marks(self, epoch: int) -> dict[str, object]:
        """Return what tells this source's latents from others of the same pictures and crops.

        Those of an epoch alone carry its number, so that they can be found and forgotten.
        """
        return {"dataset": self.name, "epoch": epoch} if self.redraws else {}

    def picture(self, row: int) -> Picture:
        """Describe the picture of a row: which object, and how it is cut."""
        return self.pictures(np.array([row]))[0]

    def pictures(self, rows: NDArray[np.int64], crops: CropArrays | None = None) -> list[Picture]:
        """Describe the pictures of some rows, in their order; see `columns`."""
        return self.columns(rows, crops).each()

    def columns(self, rows: NDArray[np.int64], crops: CropArrays | None = None) -> PictureColumns:
        """Describe the pictures of some rows column by column, in their order.

        Args:
            rows: Rows of the catalog, int64 [n].
            crops: How they are cut, where that is known already.
        """
        facts = self.catalog.facts
        return PictureColumns(
            np.asarray(rows, np.int64),
            facts.texts("key", rows),
            facts.texts("etag", rows),
            self.catalog.crops(rows) if crops is None else crops,
            facts.take("width", rows),
            facts.take("height", rows),
            facts.take("size", rows),
            facts.take("frames", rows),
        )

    def partner_rows(
        self, rows: NDArray[np.int64], *, seed: int, epoch: int
    ) -> dict[str, NDArray[np.int64]]:
        """Return the row of each sample's partner in each set of conditioning.

        Where one set is drawn, that is a function of (seed, epoch, key) and of which sets the
        sample has partners in; one that a sample lacks changes no other sample's.

        Args:
            rows: Rows of its samples, int64 [n].
            seed: Seed of the run.
            epoch: The epoch, from 0.

        Returns:
            By set, int64 [n]; -1 where a sample has no partner, or has another set.
        """
        found = {name: partners[rows] for name, (_, partners) in self.conditioning.items()}
        if not found or sampling_of(self.backend) != RANDOM:
            return found
        names = list(found)
        has = np.stack([found[name] >= 0 for name in names], axis=1)
        drawn = []
        for row, key in zip(has.tolist(), self.catalog.facts.texts("key", rows), strict=True):
            # Each set has a number of its own for each sample; that of the highest is used.
            number = partial(conditioning_draw, seed=seed, epoch=epoch, key=key)
            drawn.append(max(compress(names, row), key=number, default=None))
        chosen = np.array(drawn, dtype=object)
        return {name: np.where(chosen == name, of, -1) for name, of in found.items()}

    def forget_epochs(self, but: int, *, published: bool) -> None:
        """Forget latents of epochs, all but those of one, if this source has such.

        Args:
            but: The epoch whose latents stay.
            published: Whether to remove shards, too: those are every process's.

        Raises:
            StorageError: The cache cannot be read or written to.
        """
        if self.latents is None or not self.redraws:
            return
        if published:
            forget_epochs(self.latents, self.name, but)
        else:
            self.latents.write_buffer.discard(lambda recipe: of_other_epoch(recipe, self.name, but))

    def samples(
        self, rows: NDArray[np.int64], engine: Engine, epoch: int = 0
    ) -> "Iterator[NDArray[np.uint8] | UnusableSample]":
        """Yield the pixels of some rows in their order, [H, W, 3] or [F, H, W, 3] of clips.

        Objects of a remote storage are asked for side by side, and decoded as they arrive.

        Args:
            rows: Rows of the catalog, int64 [n].
            engine: Decodes them.
            epoch: The epoch they are cut for.

        Raises:
            StorageError: The storage failed, and not one object of it; the note names the
                sample that was read.
        """
        pictures = self.pictures(rows, self.crops(rows, epoch))
        with closing(read_pixels(self.backend.reader, [pictures], engine)) as outcomes:
            for picture, outcome in zip(pictures, outcomes, strict=True):
                if isinstance(outcome, Exception):
                    work = f"reading {picture.key!r} of backend {self.name!r}"
                    fault = sample_fault(outcome, self.backend.storage, work)
                    yield UnusableSample(self.name, picture.key, *fault)
                else:
                    yield outcome

    @property
    def locatable(self) -> bool:
        """Whether each row of it has one place in the store of latents, where it stays."""
        return self.latents is not None and self.encode_mode.keeps and not self.redraws

    def locate(self, files: LocationFiles | None = None) -> None:
        """Look up where the embeddings of all kept rows lie, so that batches need not.

        Where they are encoded as batches need them, each is looked up when it is first asked
        for, unless it is kept where they lie.

        Args:
            files: Where that is kept on this machine; None keeps it in memory.

        Raises:
            StorageError: The cache cannot be read.
        """
        latents, vision = self.latents, self.vision
        if vision is not None:
            self.find(vision, files)
        if self.text is not None:
            self._locate_text(self.text, files)
        if latents is None or not self.locatable:
            return
        before = self.locations.get(latents.name)
        if self.encode_mode.ahead:
            self.find(latents, files)
        elif before is None or before.lacking.size:  # some may have been encoded meanwhile
            query = self._query(latents)
            self.locations[latents.name] = locate_rows_lazily(latents.store, query, files)

    def _locate_text(self, text: TextEmbedBackend, files: LocationFiles | None) -> None:
        """Look up where captions lie that are a sample's own text in every epoch."""
        catalog = self.catalog
        marks = catalog.captions.plain_marks
        if marks is None or not self.encode_text_mode.ahead:
            return
        query = self._kept_rows(
            lambda rows: text.keys(catalog.own_captions(rows)),
            f"{catalog.texts_identity}/{marks!r}/{canonical(text.recipe)}",
        )
        files = None if files is None else LocationFiles(files.folder / text.name)
        before = self.locations.get(text.name)
        self.locations[text.name] = locate_rows(text.store, query, files, before)

    def find(self, embeds: PictureEmbedBackend, files: LocationFiles | None = None) -> RowLocations:
        """Return where all kept rows lie in a store, which have none, and the keys of those.

        A key is made once, however often this is called.

        Args:
            embeds: The store, `latents` or `vision`.
            files: Where that is kept on this machine; None keeps it in memory.

        Raises:
            StorageError: The cache cannot be read.
        """
        if files is not None and embeds is not self.latents:
            files = LocationFiles(files.folder / embeds.name)
        before = self.locations.get(embeds.name)
        found = locate_rows(embeds.store, self._query(embeds), files, before)
        self.locations[embeds.name] = found
        return found

    def _query(self, embeds: PictureEmbedBackend) -> RowQuery:
        """Return the kept rows as what is looked for in a store of embeddings."""
        reader = self.backend.reader
        return self._kept_rows(
            lambda rows: embeds.keys(reader, self.columns(rows)), canonical(embeds.recipe(reader))
        )

    def _kept_rows(self, keys_of: KeysOf, what: str) -> RowQuery:
        """Return the kept rows as what is looked for by some keys, which follow from `what`."""
        catalog = self.catalog
        identity = f"{self.identity}/{what}"
        return RowQuery(len(catalog.facts), catalog.decisions.order, keys_of, identity)

    def gather(
        self,
        embeds: PictureEmbedBackend,
        rows: NDArray[np.int64],
        crops: CropArrays | None = None,
        epoch: int = 0,
        *,
        located: GatherPlan | None = None,
        allocate: Allocator = new_tensor,
    ) -> dict[str, torch.Tensor]:
        """Gather embeddings of pictures from where they lie, or by their keys: fields [B, ...].

        Args:
            embeds: `latents` or `vision`.
            rows: Rows of the catalog, int64 [B].
            crops: How they are cut, where that is known already.
            epoch: The epoch they are for.
            located: Where they lay when that was looked up, if it was.
            allocate: Makes the tensors that are returned.

        Raises:
            UnusableRowsError: Rows are missing or damaged.
            StorageError: The cache cannot be read.
        """
        if located is None:
            located = self.located(embeds, rows)
        if located is not None:
            # Rows that lie elsewhere by now are found by their keys.
            with suppress(UnusableRowsError):
                return located.read(allocate=allocate)
        pictures = self.columns(rows, self.crops(rows, epoch) if crops is None else crops)
        # Image embeddings are those of the first epoch's crops, whichever are trained on.
        marks = self.marks(epoch) if embeds is self.latents else {}
        return embeds.gather(self.backend.reader, pictures, allocate=allocate, **marks)

    def located(
        self, embeds: PictureEmbedBackend | None, rows: NDArray[np.int64]
    ) -> GatherPlan | None:
        """Return where the embeddings of some rows lie; None where only their keys tell.

        Args:
            embeds: `latents` or `vision`, which may be None.
            rows: Rows of the catalog, int64 [n].
        """
        if embeds is None or (embeds is self.latents and not self.locatable):
            return None
        locations = self.locations.get(embeds.name)
        return None if locations is None else GatherPlan(embeds.store, locations.at(rows))

    def locate_text(self, sample_captions: SampleCaptions) -> GatherPlan | None:
        """Return where encoded captions lie; None where nothing is kept of them.

        Raises:
            StorageError: The cache cannot be read.
        """
        if self.text is None or not self.encode_text_mode.keeps:
            return None
        store, captions = self.text.store, sample_captions.captions
        locations = self.locations.get(self.text.name)
        if locations is None:
            return GatherPlan(store, store.snapshot().index.find(self.text.keys(captions)))
        refs = locations.at(sample_captions.rows)
        if others := np.flatnonzero(~sample_captions.own).tolist():
            keys = self.text.keys([captions[place] for place in others])
            refs.put(np.array(others), locations.snapshot.index.find(keys))
        return GatherPlan(store, refs)

    def read_text(
        self,
        captions: Sequence[str],
        tally: EncodeCounts | None = None,
        *,
        located: GatherPlan | None = None,
        allocate: Allocator = new_tensor,
    ) -> dict[str, torch.Tensor]:
        """Return encoded captions in their order: fields [B, ...]; none without an encoder.

        Args:
            captions: B captions.
            tally: Counts those that had to be encoded.
            located: Where they lay when that was looked up, if it was.
            allocate: Makes the tensors that are returned.
        """
        if self.text is None:
            return {}
        if located is not None:
            try:
                return located.read(pad=self.text.pads, allocate=allocate)
            except UnusableRowsError:
                # Rows that lie elsewhere by now, or nowhere, are looked for by their keys. So are
                # those of all later batches: others lie elsewhere, too, or this one does again.
                self.locations.pop(self.text.name, None)
        return read_captions(
            self.text, captions, self.encode_text_mode, self.name, tally, allocate=allocate
        )


@dataclass(frozen=True)
class UnusableSample:
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
