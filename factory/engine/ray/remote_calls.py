"""Remote calls on a Ray cluster: the task, the actor, and how values travel to them."""

import os
import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from socket import gethostname
from types import ModuleType
from typing import Any

from factory.engine.engine import Worker
from factory.engine.local_engine import LocalEngine
from factory.errors import ConfigError, MissingExtraError
from factory.storage.base import Storage
from factory.storage.memory import MemoryStorage

# Settings of storages that are folders; relative ones count from the folder a run starts in,
# and workers start in another.
_FOLDERS = ("root", "cache_dir")


def ray_module() -> ModuleType:
    """Return Ray.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray", "engine=ray") from error
    return ray


def pack(value: object) -> bytes:
    """Return a value as bytes that mean the same to a worker on another machine.

    Raises:
        ConfigError: It holds a storage that no other process sees.
    """
    file = BytesIO()
    _pickler()(file).dump(value)
    return file.getvalue()


def unpack(data: bytes) -> Any:
    """Return what `pack` packed; only this run's own bytes are given to it."""
    from ray import cloudpickle

    return cloudpickle.loads(data)


@cache
def _pickler() -> Any:
    from ray.cloudpickle import CloudPickler

    class Pickler(CloudPickler):
        """Makes folders absolute, and refuses what lies in this process's memory."""

        def reducer_override(self, value: Any) -> Any:
            """Return how a value is made again."""
            if isinstance(value, Storage):
                return _travelling(value).__reduce_ex__(5)
            return super().reducer_override(value)  # type: ignore[no-untyped-call]

    return Pickler


def _travelling(storage: Storage) -> Storage:
    if isinstance(storage, MemoryStorage):
        raise ConfigError(
            f"engine=ray: {storage.identity} lies in this process's memory, which no worker sees; "
            "choose storage=s3, or storage=local in a folder that all machines share, or set "
            "engine=local"
        )
    settings: list[str] = [field.name for field in fields(storage)] if is_dataclass(storage) else []
    folders = {
        name: str(Path(getattr(storage, name)).expanduser().absolute())
        for name in _FOLDERS
        if name in settings and getattr(storage, name)
    }
    return replace(storage, **folders) if folders else storage  # type: ignore[type-var]


def apply(function: bytes, items: bytes) -> tuple[bytes, float]:
    """Call a function with some items, as a task.

    Returns:
        The packed list of results, exceptions among them; and the seconds they took.
    """
    call = unpack(function)
    start = time.perf_counter()
    results = [_attempt(call, item) for item in unpack(items)]
    return pack(results), time.perf_counter() - start


def _attempt(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except Exception as error:  # noqa: BLE001 - it is the item's result
        return error


class Encoder:
    """An actor: does units with a worker of its own, two at once.

    While the rows of one unit are written, the samples of the next one are read already.
    """

    def __init__(self, worker: bytes, threads: int) -> None:
        """Store the packed worker; it is unpacked at the first unit, where errors are told."""
        self._packed, self._engine = worker, LocalEngine(threads)
        self._worker: Worker[Any, Any] | None = None

    def do(self, unit: bytes) -> bytes:
        """Do one packed unit; return the packed reports once what was made is durable."""
        try:
            if self._worker is None:
                self._worker = unpack(self._packed)
            reports = list(self._worker([unpack(unit)], self._engine))
        except Exception as error:
            error.add_note(f"in process {os.getpid()} of the Ray cluster, on {gethostname()}")
            raise
        return pack(reports)
