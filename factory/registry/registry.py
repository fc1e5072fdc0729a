"""The registry of a run: its backends, the order they were built in, and what that cost."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from factory.backends.conditioning import ConditioningBackend, delivery_problems, is_generated
from factory.backends.embeddings import (
    EmbedBackend,
    ImageEmbedBackend,
    TextEmbedBackend,
    VisionEmbedBackend,
)
from factory.backends.encode_missing import read_captions
from factory.backends.encode_mode import EncodeMode
from factory.backends.image import EvalBackend, ImageBackend, SampleBackend
from factory.backends.streaming.backend import StreamBackend
from factory.cache.store import UnusableRowsError
from factory.encoder.base import ClipEncoder
from factory.encoder.pixels import RawPixels
from factory.engine.engine import Engine
from factory.errors import ConfigError
from factory.metrics.stages import METRICS, Telemetry
from factory.registry.build_order import build_order
from factory.workspace import Workspace

Backend = SampleBackend | EmbedBackend
Kind = TypeVar("Kind")
Store = TypeVar("Store", bound=EmbedBackend)
# What fields of sample backends name, and of which kind that has to be.
_KINDS = {
    "text_embeds": TextEmbedBackend,
    "image_embeds": ImageEmbedBackend,
    "conditioning_image_embeds": VisionEmbedBackend,
    "source": ImageBackend | EvalBackend,
}


class Registry:
    """Holds the backends of a run by name, and what building them took.

    Nothing in it is global: two registries live side by side in one process.

    Attributes:
        backends: Every backend by name, those that others depend on first.
        cache: Where facts and encoded tensors are kept.
        engine: Where bulk work runs.
        telemetry: What each stage took.
    """

    def __init__(
        self,
        backends: Iterable[Backend],
        *,
        cache: Workspace,
        engine: Engine,
        telemetry: Telemetry | None = None,
    ) -> None:
        """Sort the backends by dependency; no I/O.

        Raises:
            ConfigError: Two backends share a name, or one refers to another that is unknown,
                of the wrong kind, or depends on it in turn.
        """
        self.cache, self.engine = cache, engine
        self.telemetry = telemetry or Telemetry()
        listed = list(backends)
        names = [backend.name for backend in listed]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(
                [f"two backends are named {name!r}; give each its own name" for name in twice]
            )
        by_name = dict(zip(names, listed, strict=True))
        # Stores first, so that the first one of a kind is the one that was listed first.
        names.sort(key=lambda name: not isinstance(by_name[name], EmbedBackend))
        needs = {name: dict(self._references(by_name[name])) for name in names}
        self.backends: dict[str, Backend] = {n: by_name[n] for n in build_order(needs)}
        self._check_kinds(needs)
        self._check_conditioning()
        self._pixels: dict[str, ImageEmbedBackend] = {}

    @property
    def data(self) -> dict[str, ImageBackend]:
        """Backends that are trained on, streams included."""
        return self._of(ImageBackend)

    @property
    def samples(self) -> dict[str, SampleBackend]:
        """Backends of stored samples: trained on, validated on, or conditioned on."""
        found = self._of(SampleBackend)
        return {name: b for name, b in found.items() if not isinstance(b, StreamBackend)}

    @property
    def stored(self) -> dict[str, SampleBackend]:
        """Those of `samples` that have objects of their own, and so facts."""
        return {name: b for name, b in self.samples.items() if not is_generated(b)}

    @property
    def streams(self) -> dict[str, StreamBackend]:
        """Backends that are trained on while they are read."""
        return self._of(StreamBackend)

    @property
    def eval(self) -> dict[str, EvalBackend]:
        """Backends that are validated on."""
        return self._of(EvalBackend)

    @property
    def text_embeds(self) -> dict[str, TextEmbedBackend]:
        """Backends of encoded captions."""
        return self._of(TextEmbedBackend)

    @property
    def image_embeds(self) -> dict[str, ImageEmbedBackend]:
        """Backends of encoded pictures."""
        return self._of(ImageEmbedBackend)

    @property
    def vision_embeds(self) -> dict[str, VisionEmbedBackend]:
        """Backends of pictures encoded to condition on."""
        return self._of(VisionEmbedBackend)

    def _of(self, kind: type[Kind]) -> dict[str, Kind]:
        return {name: b for name, b in self.backends.items() if isinstance(b, kind)}

    def close(self) -> None:
        """Close engine, stores and storages; what fails to close does not keep the others open."""
        with contextlib.ExitStack() as stack:  # the last one first
            stack.callback(self.cache.storage.close)
            stack.callback(self.engine.close)
            for pixels in self._pixels.values():
                stack.callback(pixels.close)
            for backend in self.backends.values():
                stack.callback(
                    backend.storage.close if isinstance(backend, SampleBackend) else backend.close
                )
            stack.callback(self.publish)

    def write_metrics(self, folder: Path) -> None:
        """Write what each stage took to `metrics.json` in a folder."""
        self.telemetry.write(folder / METRICS)

    def _references(self, backend: Backend) -> Iterable[tuple[str, str]]:
        """Return (field, name) of what a backend needs built before it."""
        if isinstance(backend, SampleBackend):
            for field in _KINDS:
                name = getattr(backend, field, None)
                if name is not None:
                    yield field, name

    def _check_kinds(self, needs: Mapping[str, Mapping[str, str]]) -> None:
        def fits(field: str, backend: Backend) -> bool:
            # What is never scanned cannot be paired by name.
            return isinstance(backend, _KINDS[field]) and not isinstance(backend, StreamBackend)

        problems = [
            f"data.backends.{name}.{field} names {other!r} of type "
            f"{type(self.backends[other]).__name__}; "
            + _instead([n for n, b in self.backends.items() if fits(field, b)])
            for name, fields in needs.items()
            for field, other in fields.items()
            if not fits(field, self.backends[other])
        ]
        for stores in (self.text_embeds, self.image_embeds, self.vision_embeds):
            problems += _two_defaults(stores)
        if not problems:  # modes follow from what backends refer to
            problems += self._mode_problems()
        if problems:
            raise ConfigError(problems)

    def _mode_problems(self) -> Iterable[str]:
        for name, backend in self.samples.items():
            mode = self.encode_mode(backend)
            try:
                if mode.redraws:
                    backend.check_redraws()
            except ValueError as error:
                yield str(error)
            if not isinstance(backend, ConditioningBackend):
                continue
            source = self.encode_mode(self.samples[backend.source])
            if mode.redraws != source.redraws and mode is not EncodeMode.transient:
                yield (
                    f"data.backends.{name}.encode_mode={mode} does not fit {source} of "
                    f"{backend.source!r}, whose cuts it has; set data.backends.{name}.encode_mode="
                    f"{source}"
                )

    def _check_conditioning(self) -> None:
        """Refuse deliveries and sets that cannot be.

        Raises:
            ConfigError: All problems at once.
        """
        problems: list[str] = []
        for backend in self._of(ConditioningBackend).values():
            source = self.samples[backend.source]
            encoded, its = (self.image_store(each) is not None for each in (backend, source))
            problems += delivery_problems(backend, source, encoded=encoded, source_encoded=its)
        if problems:
            raise ConfigError(problems)

    def check_alignment(self) -> None:
        """Refuse targets and clips that an image encoder cannot divide into latent cells.

        Apart from construction, since a pretrained encoder reads its model's config for this.

        Raises:
            ConfigError: An alignment is no multiple of the encoder's downscale, or clips have
                frames that it would leave out.
        """
        problems = []
        for name, backend in {**self.samples, **self.streams}.items():
            store = self.image_store(backend)
            # Conditioning pictures are cut as their sources are, but for some loose ones.
            cut = backend
            if isinstance(backend, ConditioningBackend) and backend.alignment is None:
                cut = self.samples[backend.source]
            if store is not None and cut.alignment % store.encoder.downscale:
                problems.append(
                    f"data.backends.{cut.name}.alignment={cut.alignment} is no multiple of the "
                    f"downscale {store.encoder.downscale} of {store.name!r}, which encodes "
                    f"{name!r}; set data.alignment={store.encoder.downscale * 8}"
                )
            problems += _left_out_frames(backend, store)
        if problems:
            raise ConfigError(problems)

    def image_store(self, backend: SampleBackend) -> ImageEmbedBackend | None:
        """Return where a backend's latents are kept; None where pixels are read."""
        if isinstance(backend, ConditioningBackend) and not backend.wants_latents:
            return None
        return _chosen(backend.image_embeds, self.image_embeds)

    def vision_store(self, backend: SampleBackend) -> VisionEmbedBackend | None:
        """Return where image embeddings of a backend's pictures are kept; None for none.

        Only if the backend names a store, or one is the default: that is for what is trained or
        validated on, not for conditioning backends.
        """
        name = backend.conditioning_image_embeds
        if name is not None:
            return self.vision_embeds[name]
        if isinstance(backend, ConditioningBackend):
            return None
        return next((store for store in self.vision_embeds.values() if store.default), None)

    def pixel_store(self, backend: ConditioningBackend) -> ImageEmbedBackend:
        """Return where a backend's pictures are kept as pixels: a store of its own name."""
        if backend.name not in self._pixels:
            encoder = RawPixels(backend.kind.channels)
            self._pixels[backend.name] = ImageEmbedBackend(
                name=backend.name, cache=self.cache, encoder=encoder
            )
        return self._pixels[backend.name]

    def text_store(self, backend: SampleBackend) -> TextEmbedBackend | None:
        """Return where a backend's encoded captions are kept; None for plain texts."""
        return _chosen(backend.text_embeds, self.text_embeds)

    def read_texts(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the fields of texts, [B, ...], as the default store has them, or encodes them.

        Raises:
            ConfigError: There is no text encoder.
        """
        store = _chosen(None, self.text_embeds)
        if store is None:
            raise ConfigError(
                "there is no text_embeds backend to encode texts with; choose encoder/text=hashed "
                "or transformers, or add a TextEmbedBackend"
            )
        return read_captions(store, texts, EncodeMode(store.encode_mode), "a prompt")

    def kept_texts(self, texts: Sequence[str]) -> dict[str, torch.Tensor] | None:
        """Return the fields of texts, [B, ...], if the default store has them all, unharmed."""
        store = _chosen(None, self.text_embeds)
        with contextlib.suppress(UnusableRowsError):
            if store is not None:
                return store.gather(texts)
        return None

    def encode_mode(self, backend: SampleBackend) -> EncodeMode:
        """Return when a backend's pictures are encoded.

        One that says nothing follows its store. But cuts are drawn anew for training alone: a
        conditioning backend follows its source in this, and validation is encoded beforehand.
        """
        if backend.encode_mode is not None:
            return EncodeMode(backend.encode_mode)
        store = self.image_store(backend)
        mode = EncodeMode.precompute if store is None else EncodeMode(store.encode_mode)
        if isinstance(backend, ConditioningBackend):
            source = self.encode_mode(self.samples[backend.source])
            return source if source.redraws or mode.redraws else mode
        if isinstance(backend, EvalBackend) and mode.redraws:
            return EncodeMode.precompute
        return mode

    def encode_text_mode(self, backend: SampleBackend) -> EncodeMode:
        """Return when a backend's captions are encoded; one that says nothing follows its store."""
        if backend.encode_text_mode is not None:
            return EncodeMode(backend.encode_text_mode)
        store = self.text_store(backend)
        return EncodeMode.precompute if store is None else EncodeMode(store.encode_mode)

    @property
    def unused(self) -> list[str]:
        """Stores of embeddings that no backend uses, but for those of texts with prompts."""
        used: set[str] = {n for n, b in self.text_embeds.items() if b.prompts or b.prompts_file}
        for backend in {**self.samples, **self.streams}.values():
            stores: list[EmbedBackend | None]
            stores = [self.image_store(backend), self.vision_store(backend)]
            if not isinstance(backend, ConditioningBackend):  # whose captions nobody asks for
                stores.append(self.text_store(backend))
            used.update(store.name for store in stores if store is not None)
        return [
            n for n, b in self.backends.items() if isinstance(b, EmbedBackend) and n not in used
        ]

    def publish(self) -> None:
        """Publish what this process has encoded while it made batches.

        Raises:
            StorageError: It cannot be written.
        """
        pictures = (*self.image_embeds.values(), *self._pixels.values())
        for store in (*pictures, *self.text_embeds.values()):
            store.write_buffer.publish()


def _chosen(name: str | None, stores: Mapping[str, Store]) -> Store | None:
    """Return the store named, else the default one, else the only or first one."""
    if name is not None:
        return stores[name]
    default = [store for store in stores.values() if store.default]
    return next(iter(default or stores.values()), None)


def _left_out_frames(backend: SampleBackend, store: ImageEmbedBackend | None) -> list[str]:
    if backend.clip is None or store is None or not isinstance(store.encoder, ClipEncoder):
        return []
    nearest = store.encoder.nearest_frames(backend.clip.frames)
    if nearest == backend.clip.frames:
        return []
    setting = f"data.backends.{backend.name}.frames"
    given = f"{setting}={backend.clip.frames} is no number of frames that the encoder of "
    return [f"{given}{store.name!r} takes whole; set {setting}={nearest}"]


def _instead(names: list[str]) -> str:
    return f"name one of {', '.join(names)}" if names else "there is no backend that fits"


def _two_defaults(stores: Mapping[str, Store]) -> list[str]:
    names = [name for name, store in stores.items() if store.default]
    if len(names) <= 1:
        return []
    listed = " and ".join(f"data.backends.{name}" for name in names)
    return [f"{listed} are both the default of their kind; set default=false for all but one"]
