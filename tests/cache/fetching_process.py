"""What a process does that reads a remote cache through the tiers of its machine."""

import os
import threading
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

from factory.cache.format.recipe import recipe_keys
from factory.cache.store import TensorStore
from factory.storage import LocalStorage, S3Storage, Storage

RECIPE = {"kind": "latents", "encoder": "test"}
THREADS = 4


@dataclass(frozen=True)
class FarStorage(LocalStorage):
    """A folder that is taken for a server, and notes every read in a file.

    Attributes:
        log: The file.
        gate: A file that reads of shards after the first wait for; none waits if empty.
    """

    log: str = ""
    gate: str = ""

    @property
    def remote(self) -> bool:
        """True: reads wait."""
        return True

    def local_path(self, key: str) -> None:  # type: ignore[override]
        """Return None: nothing can be mapped."""

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Note what is read, in one write, so that processes do not mix their lines."""
        if self.log:
            with Path(self.log).open("ab", buffering=0) as file:
                file.write(f"{key} {start} {length}\n".encode())
        if self.gate and start > 0 and "shards" in key:
            with Path(self.gate).open("rb") as gate:  # a pipe: opens with its writer
                gate.read(1)
        return super().read(key, start, length)

    def read_many(self, spans):  # type: ignore[no-untyped-def]
        """Read one after the other, as they are asked for."""
        return (self._read_or_error(span) for span in spans)


def store_of(storage: Storage, local: str, **limits: float | str | None) -> TensorStore:
    """Return a store of 64 KiB rows, 32 to a shard."""
    return TensorStore(storage, "cache", local_dir=local, shard_mb=2, **limits)  # type: ignore[arg-type]


def read_all(storage: Storage, local: str, rows: int, limits: dict[str, float]) -> None:
    """Read all rows in several threads, and compare them."""
    store = store_of(storage, local, **limits)
    keys = recipe_keys(RECIPE, {"row": range(rows)})
    wrong: list[object] = []

    def read() -> None:
        for start in range(0, rows, 8):
            try:
                got = store.gather(keys[start : start + 8])["field"][:, 0].tolist()
                if got != list(range(start, start + 8)):
                    wrong.append(got)
            except Exception as error:  # noqa: BLE001 - told by the exit status
                wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise SystemExit(str(wrong[0]))


def read_all_from_server(
    endpoint: str,
    environment: dict[str, str],
    local: str,
    rows: int,
    limits: dict[str, float],
    begun: Event,
) -> None:
    """Read all rows from a server, as `read_all` does, and say when the first is asked for."""
    os.environ.update(environment)
    storage = S3Storage(environment["DATA_BUCKET"], endpoint_url=endpoint)
    store_of(storage, local, **limits).open()  # connected, and the index is there
    begun.set()
    read_all(storage, local, rows, limits)
