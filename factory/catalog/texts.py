"""Raw caption texts, read from sidecar files or table columns beside the samples."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from factory.bulk import Engine
from factory.catalog.captions import LIST_SEPARATOR, Captions
from factory.catalog.facts import Fact
from factory.catalog.metadata import Scan
from factory.errors import MediaError, ObjectNotFoundError
from factory.records import ObjectInfo
from factory.storage.base import Storage, TabularStorage
from factory.telemetry import progress


@dataclass(frozen=True, slots=True)
class Text:
    """The raw caption of one sample.

    Attributes:
        words: Texts as the source gave them; None where there is no source.
        etag: Changes whenever the source does.
        error: Why the source cannot be used, "reason: detail".
    """

    words: tuple[str, ...] | None = None
    etag: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class _ReadText:
    """Reads one text file; picklable, so that any engine can run it."""

    storage: Storage
    captions: Captions

    def __call__(self, info: ObjectInfo) -> tuple[str, ...]:
        return self.captions.parse(self.storage.read(info.key))


def stem(key: str) -> str:
    """Return a key without the suffix of its last part."""
    return str(PurePosixPath(key).with_suffix(""))


def read_sidecars(
    scan: Scan,
    engine: Engine,
    listing: list[ObjectInfo],
    facts: dict[str, Fact],
    *,
    reuse: bool,
) -> dict[str, Text]:
    """Return the text beside each sample, reading only files that are new or changed.

    Args:
        scan: The scan; its captions name the sidecar's suffix.
        engine: Runs the reads.
        listing: Every object of the storage, as listed for the samples.
        facts: Samples by key, with the texts of an earlier scan.
        reuse: Whether those earlier texts come from the same source.
    """
    suffix = scan.captions.sidecar
    files = {stem(o.key): o for o in listing if PurePosixPath(o.key).suffix == suffix}
    wanted = {key: files[stem(key)] for key in facts if stem(key) in files}
    texts: dict[str, Text] = {}
    fresh: dict[str, list[str]] = {}
    for key, info in wanted.items():
        if reuse and facts[key].text_etag == info.etag:
            texts[key] = Text(facts[key].text, info.etag, facts[key].text_error)
        else:
            fresh.setdefault(info.key, []).append(key)
    objects = [files[stem(keys[0])] for keys in fresh.values()]
    with progress(f"captions {scan.name}", len(objects), "files") as advance:
        for info, outcome in engine.map(_ReadText(scan.storage, scan.captions), objects):
            text = _text(info, outcome)
            texts.update(dict.fromkeys(fresh[info.key], text))
            advance(1)
    return texts


def _text(info: ObjectInfo, outcome: tuple[str, ...] | Exception) -> Text:
    if isinstance(outcome, tuple):
        return Text(outcome, info.etag)
    # An empty etag never equals a listed one, so a file that vanished is looked for again.
    if isinstance(outcome, ObjectNotFoundError):
        return Text(None, "", f"no caption: {info.key} vanished")
    if isinstance(outcome, MediaError):
        return Text(None, info.etag, str(outcome))
    outcome.add_note(f"while reading the caption file {info.key!r}")
    raise outcome


def column_texts(storage: TabularStorage, captions: Captions) -> dict[str, Text]:
    """Return the caption columns of each row of a table.

    Raises:
        TableError: A column is not there.
    """
    table = storage.rows(captions.columns)
    values = [table[name].to_pylist() for name in captions.columns]
    keys = table["key"].to_pylist()
    return {key: Text(flatten(cells)) for key, *cells in zip(keys, *values, strict=True)}


def flatten(cells: list[object]) -> tuple[str, ...]:
    """Return the texts of one row's cells, one entry a column.

    An empty cell gives ""; the texts of a list are kept apart by `LIST_SEPARATOR`.
    """
    texts: list[str] = []
    for cell in cells:
        if isinstance(cell, list):
            texts.append(LIST_SEPARATOR.join(str(part) for part in cell if part is not None))
        else:
            texts.append("" if cell is None else str(cell))
    return tuple(texts)
