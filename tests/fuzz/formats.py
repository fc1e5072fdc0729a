"""Every kind of file that is read from a disk which somebody else may have written to."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from factory.cache.format.recipe import recipe_keys
from factory.cache.store import TensorStore
from factory.catalog.facts import Fact, Facts
from factory.catalog.facts_store import FactsStore
from factory.catalog.tables.table_reader import TableReader
from factory.ledger.file_format import LedgerHeader
from factory.ledger.ledger import Ledger
from factory.ledger.reader import ledger_files, read_file, read_ledger
from factory.lightning.checkpoint_file import check_trusted, check_whole
from factory.storage import HuggingFaceStorage, LocalStorage, TarStorage, UrlListStorage
from factory.storage.huggingface_stream import RowStream
from tests.fuzz.harness import Format
from tests.ledger.test_ledger import run
from tests.storage.tar.tars import archive

ROWS = 40


def _shelf(folder: Path) -> FactsStore:
    return FactsStore(LocalStorage(str(folder)), "a.parquet", folder / "mapped/a.arrow")


def write_catalog(folder: Path) -> None:
    """Publish the facts of some samples, as Parquet and mapped."""
    rows = [
        Fact(
            f"p/{n:04d}.png", n, f"e{n}", 64 + n, 96, "PNG",
            error="truncated: header" if n % 7 == 3 else None,
            text=None if n % 5 == 4 else tuple(f"caption {n} {k}" for k in range(n % 3)),
        )
        for n in range(ROWS)
    ]  # fmt: skip
    score = {"column.score": pa.array(np.linspace(0, 1, ROWS))}
    _shelf(folder).save(Facts.of(rows, {"prefix": "p"}, extra=score))


def read_catalog(folder: Path) -> Any:
    """Return every cell of a catalog, by both ways to them."""
    facts = _shelf(folder).load()
    if facts is None:
        return None
    rows = np.arange(len(facts))
    few = [facts.keys(rows), facts.texts("text", rows), facts.take("width", rows).tolist()]
    return few, facts.table.to_pylist(), facts.origin


def read_published(folder: Path) -> Any:
    """Return every cell of a catalog's Parquet object."""
    facts = _shelf(folder).published()
    return None if facts is None else facts.table.to_pylist()


def write_ledger(folder: Path) -> None:
    """Record some steps, as one process does."""
    ledger = Ledger(folder, every=8)
    ledger.begin(LedgerHeader(0, 1, 2, "f" * 32, 7, {"a": "i" * 32}))
    run(ledger, range(30), micros=2)
    ledger.close()


def write_plain_ledger(folder: Path) -> None:
    """Record the same as releases did whose files had no checksums."""
    write_ledger(folder / "sealed")
    [file] = ledger_files(folder / "sealed")
    records = list(read_file(file))
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(
        str(folder / file.name), records[0][0].schema(), options=options
    ) as stream:
        for _, record in records:
            stream.write_batch(record)


def is_beginning(value: Any, sound: Any) -> bool:
    """Tell whether a ledger tells of some of the steps alone, and of those the same."""
    return bool(value.items() <= sound.items())


def read_steps(folder: Path) -> Any:
    """Return what a ledger says of each step."""
    return {
        number: (step.epoch, step.step, step.backend, step.bucket, step.rows.tolist())
        for number, step in read_ledger(folder).items()
    }


def _store(folder: Path) -> TensorStore:
    return TensorStore(LocalStorage(str(folder)), "cache/images", shard_mb=1 / 16)


_KEYS = recipe_keys({"kind": "test"}, {"row": range(ROWS)})


def write_cache(folder: Path) -> None:
    """Publish rows of two fields."""
    numbers = torch.arange(ROWS)[:, None]
    with _store(folder).writer(recipe={"kind": "test"}) as writer:
        writer.add(
            _KEYS, {"latents": numbers.repeat(1, 16).half(), "mask": numbers.repeat(1, 3) > 5}
        )


def read_cache(folder: Path) -> Any:
    """Return all rows of a cache."""
    store = _store(folder)
    store.open()
    try:
        return {name: rows.tolist() for name, rows in store.gather(_KEYS).items()}
    finally:
        store.close()


def _tar(folder: Path) -> TarStorage:
    return TarStorage(LocalStorage(str(folder)), index=LocalStorage(str(folder / "index")))


def write_tar(folder: Path) -> None:
    """Write a shard of pictures and captions, and no index."""
    members = {
        f"{n:03d}.{kind}": f"{kind} {n}".encode() for n in range(12) for kind in ("png", "txt")
    }
    (folder / "a.tar").write_bytes(archive(members))


def write_indexed_tar(folder: Path) -> None:
    """Write a shard, and the index that reading it leaves."""
    write_tar(folder)
    read_tar(folder)


def read_tar(folder: Path) -> Any:
    """Return every member of the shards."""
    storage = _tar(folder)
    try:
        return {info.key: storage.read(info.key) for info in storage.objects()}
    finally:
        storage.close()


def _cells(count: int = 20) -> dict[str, list[Any]]:
    return {
        "url": [f"http://127.0.0.1:1/{n}.png" for n in range(count)],
        "caption": [f"a picture, number {n}" for n in range(count)],
        "width": list(range(64, 64 + count)),
    }


def write_csv(folder: Path) -> None:
    """Write a list of URLs."""
    rows = zip(*_cells().values(), strict=True)
    lines = [f'{url},"{caption}",{width}' for url, caption, width in rows]
    (folder / "t.csv").write_text("\n".join(["url,caption,width", *lines, ""]))


def write_jsonl(folder: Path) -> None:
    """Write a table of one JSON object a line."""
    rows = zip(*_cells().values(), strict=True)
    lines = [json.dumps(dict(zip(_cells(), row, strict=True))) for row in rows]
    (folder / "t.jsonl").write_text("\n".join([*lines, ""]))


def write_parquet(folder: Path) -> None:
    """Write a table as others do, without checksums."""
    pq.write_table(pa.table(_cells()), folder / "t.parquet")


def read_urls(folder: Path) -> Any:
    """Return the keys and captions of a list of URLs."""
    storage = UrlListStorage(
        "t.csv", LocalStorage(str(folder)), cache_dir=str(folder / "downloads")
    )
    try:
        keys = [info.key for info in storage.objects()]
        return keys, storage.rows(["caption"]).to_pylist()
    finally:
        storage.close()


def _table(name: str) -> Any:
    def read(folder: Path) -> Any:
        tables = TableReader(LocalStorage(str(folder)), (name,), "data.backends.a")
        return tables.read(["url", "caption", "width"], ["url", "caption"]).table.to_pylist()

    return read


def write_saved(folder: Path) -> None:
    """Save a Hugging Face dataset, as `save_to_disk` does."""
    from datasets import Dataset, Features, Image, Value, disable_progress_bars

    disable_progress_bars()
    features = Features(
        {"image": Image(), "caption": Value("string"), "meta": {"tags": [Value("string")]}}
    )
    rows = {
        "image": [{"bytes": b"\x89PNG" + bytes([n] * 40), "path": None} for n in range(20)],
        "caption": [f"picture {n}" if n % 4 else None for n in range(20)],
        "meta": [{"tags": ["a", "b"][: n % 3]} for n in range(20)],
    }
    Dataset.from_dict(rows, features=features).save_to_disk(str(folder / "set"))


def read_saved(folder: Path) -> Any:
    """Return every picture and caption of a saved dataset, by key and as a stream."""
    storage = HuggingFaceStorage(str(folder / "set"))
    try:
        pictures = {info.key: (info.size, storage.read(info.key)) for info in storage.objects()}
        table = storage.rows(["caption", "meta.tags"]).to_pylist()
    finally:
        storage.close()
    stream = RowStream(storage, ["caption"])
    rows = [(row.data, row.cells) for shard in range(stream.shards) for row in stream.rows(shard)]
    return pictures, table, rows


def write_checkpoint(folder: Path) -> None:
    """Save a checkpoint with the state of a data module."""
    data = {"version": 1, "epoch": 3, "step": 7, "fingerprint": "ab" * 16}
    torch.save({"state_dict": {"w": torch.arange(300.0)}, "data": data}, folder / "a.ckpt")


def read_checkpoint(folder: Path) -> Any:
    """Return what a checkpoint holds, looked at as before a run continues from it."""
    path = folder / "a.ckpt"
    check_whole(path)
    check_trusted(path)
    found = torch.load(path, map_location="cpu", weights_only=True)
    return found["state_dict"]["w"].tolist(), found["data"]


FORMATS: Mapping[str, Format] = {
    "catalog-arrow": Format(write_catalog, "mapped/a.arrow", read_catalog, exact=True),
    "catalog-parquet": Format(write_catalog, "a.parquet", read_published, exact=True),
    "ledger": Format(write_ledger, "*.arrows", read_steps, allowed=is_beginning),
    "ledger-plain": Format(write_plain_ledger, "*.arrows", read_steps),
    "cache-shard": Format(write_cache, "cache/images/shards/*", read_cache, exact=True),
    "cache-index": Format(write_cache, "cache/images/index/*", read_cache, exact=True),
    "tar": Format(write_tar, "a.tar", read_tar),
    "tar-index": Format(write_indexed_tar, "index/**/*.arrow", read_tar, exact=True),
    "checkpoint": Format(write_checkpoint, "a.ckpt", read_checkpoint, exact=True),
    "csv": Format(write_csv, "t.csv", read_urls),
    "jsonl": Format(write_jsonl, "t.jsonl", _table("t.jsonl")),
    "table-parquet": Format(write_parquet, "t.parquet", _table("t.parquet")),
    "saved-arrow": Format(write_saved, "set/*.arrow", read_saved),
    "saved-state": Format(write_saved, "set/state.json", read_saved),
    "saved-info": Format(write_saved, "set/dataset_info.json", read_saved),
}
