"""What was built, in which order, and at what cost: the backends of a run and their life."""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from factory.backends.conditioning import ConditioningBackend, delivery_problems, is_generated
from factory.backends.embeds import EmbedBackend, ImageEmbedBackend, TextEmbedBackend
from factory.backends.image import EvalBackend, ImageBackend, SampleBackend
from factory.backends.order import build_order
from factory.backends.stream import StreamBackend
from factory.bulk import Engine
from factory.cache.place import CachePlace
from factory.encoder.pixels import RawPixels
from factory.errors import ConfigError
from factory.telemetry import Telemetry

Backend = SampleBackend | EmbedBackend
Kind = TypeVar("Kind")
Store = TypeVar("Store", bound=EmbedBackend)


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
        cache: CachePlace,
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

    def _of(self, kind: type[Kind]) -> dict[str, Kind]:
        return {name: b for name, b in self.backends.items() if isinstance(b, kind)}

    def close(self) -> None:
        """Close every store and storage; what fails to close does not keep the others open."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.cache.storage.close)
            for pixels in self._pixels.values():
                stack.callback(pixels.close)
            for backend in self.backends.values():
                stack.callback(
                    backend.storage.close if isinstance(backend, SampleBackend) else backend.close
                )

    def write_metrics(self, folder: Path) -> None:
        """Write what each stage took to `metrics.json` in a folder."""
        self.telemetry.write(folder / "metrics.json")

    def _references(self, backend: Backend) -> Iterable[tuple[str, str]]:
        """Return (field, name) of what a backend needs built before it."""
        if isinstance(backend, SampleBackend):
            for field in ("text_embeds", "image_embeds", "source"):
                name = getattr(backend, field, None)
                if name is not None:
                    yield field, name

    def _check_kinds(self, needs: Mapping[str, Mapping[str, str]]) -> None:
        kinds = {
            "text_embeds": TextEmbedBackend,
            "image_embeds": ImageEmbedBackend,
            "source": ImageBackend | EvalBackend,
        }

        def fits(field: str, backend: Backend) -> bool:
            # What is never scanned cannot be paired by name.
            return isinstance(backend, kinds[field]) and not isinstance(backend, StreamBackend)

        problems = [
            f"data.backends.{name}.{field} names {other!r} of type "
            f"{type(self.backends[other]).__name__}; "
            + _instead([n for n, b in self.backends.items() if fits(field, b)])
            for name, fields in needs.items()
            for field, other in fields.items()
            if not fits(field, self.backends[other])
        ]
        problems += _two_defaults(self.text_embeds) + _two_defaults(self.image_embeds)
        if problems:
            raise ConfigError(problems)

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
        """Refuse targets that an image encoder cannot divide into latent cells.

        Apart from construction, since a pretrained encoder reads its model's config for this.

        Raises:
            ConfigError: An alignment is no multiple of the encoder's downscale.
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
        if problems:
            raise ConfigError(problems)

    def image_store(self, backend: SampleBackend) -> ImageEmbedBackend | None:
        """Return where a backend's latents are kept; None where pixels are read."""
        if isinstance(backend, ConditioningBackend) and not backend.wants_latents:
            return None
        return _chosen(backend.image_embeds, self.image_embeds)

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


def _chosen(name: str | None, stores: Mapping[str, Store]) -> Store | None:
    """Return the store named, else the default one, else the only or first one."""
    if name is not None:
        return stores[name]
    default = [store for store in stores.values() if store.default]
    return next(iter(default or stores.values()), None)


def _instead(names: list[str]) -> str:
    return f"name one of {', '.join(names)}" if names else "there is no backend that fits"


def _two_defaults(stores: Mapping[str, Store]) -> list[str]:
    names = [name for name, store in stores.items() if store.default]
    if len(names) <= 1:
        return []
    listed = " and ".join(f"data.backends.{name}" for name in names)
    return [f"{listed} are both the default of their kind; set default=false for all but one"]
