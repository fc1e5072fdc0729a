"""Facts by discovery: list the storage once, then measure the header of what is new."""

from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from factory.bulk import Engine
from factory.catalog.facts import TRANSIENT, Fact, Facts, is_transient
from factory.catalog.medium import Medium
from factory.catalog.metadata import Scan
from factory.catalog.misfortune import is_own
from factory.catalog.texts import Text, column_texts, read_sidecars
from factory.errors import MediaError
from factory.media.headers import MAX_PIXELS
from factory.records import MediaFacts, ObjectInfo
from factory.storage.base import Storage, TabularStorage
from factory.telemetry import progress

PICTURES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl",
)  # fmt: skip


@dataclass(frozen=True)
class Discovery:
    """Find samples by listing and measure them by their headers.

    Attributes:
        suffixes: File suffixes that count as pictures; rows of tables always do. Backends of
            videos have suffixes of their own.
        max_megapixels: Larger pictures are dropped as decompression bombs, MP.
        verify: Decode every picture once, so that damaged ones are dropped by the scan.
    """

    suffixes: tuple[str, ...] = PICTURES
    max_megapixels: float = MAX_PIXELS / 1e6
    verify: bool = False

    def __post_init__(self) -> None:
        """Accept any sequence of suffixes."""
        object.__setattr__(self, "suffixes", tuple(suffix.lower() for suffix in self.suffixes))

    def scan(self, scan: Scan, engine: Engine) -> Facts:
        """Return the facts of every sample, measuring only what is new or changed.

        Raises:
            StorageError: The storage cannot be listed, or fails for reasons that are not one
                sample's own.
        """
        tabular = isinstance(scan.storage, TabularStorage)
        listing = list(scan.storage.objects("" if tabular else scan.prefix))
        suffixes = scan.medium.suffixes or self.suffixes
        samples = listing if tabular else [o for o in listing if _ends(o.key, suffixes)]
        origin = scan.origin(self)
        known = _reusable(scan.known, origin)
        facts = {o.key: known[o.key] for o in samples if _same(known.get(o.key), o)}
        new = [o for o in samples if o.key not in facts]
        facts.update(self._measure_all(scan, engine, new))
        texts = self._texts(scan, engine, facts, listing)
        rows = [_with_text(fact, texts.get(fact.key)) for fact in facts.values()]
        return Facts.of(rows, origin, known)

    def _measure_all(
        self, scan: Scan, engine: Engine, objects: list[ObjectInfo]
    ) -> dict[str, Fact]:
        look = _Measure(scan.medium, scan.storage, int(self.max_megapixels * 1e6), self.verify)
        facts = {}
        with progress(f"measure {scan.name}", len(objects), "files") as advance:
            for info, outcome in engine.map(look, objects):
                facts[info.key] = _fact(info, outcome, scan.storage)
                advance(1)
        return facts

    def _texts(
        self,
        scan: Scan,
        engine: Engine,
        facts: dict[str, Fact],
        listing: list[ObjectInfo],
    ) -> dict[str, Text]:
        if isinstance(scan.storage, TabularStorage) and scan.captions.columns:
            return column_texts(scan.storage, scan.captions)
        if scan.captions.sidecar is None:
            return {}
        same_source = scan.known is not None and scan.known.origin == scan.origin(self)
        return read_sidecars(scan, engine, listing, facts, reuse=same_source)


@dataclass(frozen=True)
class _Measure:
    """Reads one sample's header; picklable, so that any engine can run it."""

    medium: Medium
    storage: Storage
    max_pixels: int
    verify: bool

    def __call__(self, info: ObjectInfo) -> tuple[MediaFacts, ObjectInfo]:
        facts = self.medium.measure(
            self.storage, info, max_pixels=self.max_pixels, verify=self.verify
        )
        return facts, info


def _ends(key: str, suffixes: tuple[str, ...]) -> bool:
    return PurePosixPath(key).suffix.lower() in suffixes


def _fact(
    info: ObjectInfo, outcome: tuple[MediaFacts, ObjectInfo] | Exception, storage: Storage
) -> Fact:
    if isinstance(outcome, tuple):
        media = outcome[0]
        return Fact(
            info.key, info.size, info.etag, media.width, media.height, media.format, media.frames
        )
    if isinstance(outcome, MediaError):
        return Fact(info.key, info.size, info.etag, error=str(outcome))
    if is_own(outcome, storage):
        return Fact(info.key, info.size, info.etag, error=f"{TRANSIENT}: {outcome}")
    outcome.add_note(f"while measuring {info.key!r} in {storage.identity}")
    raise outcome


def _same(fact: Fact | None, info: ObjectInfo) -> bool:
    return fact is not None and fact.etag == info.etag and not is_transient(fact)


def _reusable(known: Facts | None, origin: dict[str, str]) -> dict[str, Fact]:
    """Return earlier facts by key, if they were measured in the same way.

    The caption source may differ: texts are read again then, pictures are not.
    """
    if known is None or known.origin | {"captions": ""} != origin | {"captions": ""}:
        return {}
    return {fact.key: fact for fact in known.rows()}


def _with_text(fact: Fact, text: Text | None) -> Fact:
    text = text or Text()
    return replace(fact, text=text.words, text_etag=text.etag, text_error=text.error)
