"""Memory that the batches of a run are expected to take, beside what this machine has."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from factory.backends.prepared import PreparedBackend
from factory.errors import ConfigError
from factory.runtime.prefetch.batch_fetcher import Prefetch

logger = logging.getLogger("factory")

# Bytes for each byte of pixels while a batch is encoded: the pixels, and as 32-bit floating
# point once on their way into an encoder and once within it. Networks take more.
_ENCODED = 1 + 2 * 4
# Of what is free, what batches may take without a word: the model needs room as well.
_SHARE = 0.8
_GIB = 2**30
# Limits of a container, by version 2 and 1 of control groups.
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@dataclass(frozen=True)
class ExpectedMemory:
    """What one part of a run holds at once.

    Attributes:
        what: The part.
        nbytes: Bytes of it.
        least: Bytes of it whatever is set but for the sizes of batches.
        fix: The settings that lower it.
    """

    what: str
    nbytes: int
    least: int
    fix: str


def machine_memory() -> tuple[int, int]:
    """Return the bytes that this process may have at all, and those that are free now."""
    memory = psutil.virtual_memory()
    total = int(memory.total)
    for path in _LIMITS:
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):  # no such version, or "max"
            continue
    return total, min(int(memory.available), total)


def expected(
    sources: Iterable[PreparedBackend], batch_size: int, prefetch: Prefetch, shares: int = 1
) -> list[ExpectedMemory]:
    """Return what batches and the encoding of samples take, each at its worst bucket.

    Args:
        sources: The backends of samples.
        batch_size: Samples of an optimizer step, of backends that set none.
        prefetch: How far batches are prepared ahead.
        shares: Processes times micro-batches that a step is shared by.
    """
    found = []
    for source in sources:
        pixels = max(
            (bucket.width * bucket.height * 3 * (bucket.frames or 1)
             for bucket in source.catalog.decisions.buckets),
            default=0,
        )  # fmt: skip
        if source.latents is None:
            own = getattr(source.backend, "batch_size", None)
            batch = pixels * max((own or batch_size) // shares, 1)
            ready = min(prefetch.batches * batch, max(int(prefetch.megabytes * 2**20), batch))
            key = "data.batch_size" if own is None else f"data.backends.{source.name}.batch_size"
            fix = f"lower {key}={own or batch_size}"
            if ready > batch:
                fix = f"lower prefetch.batches={prefetch.batches} or prefetch.megabytes, or {fix}"
            what = f"batches of {source.name}, {batch / _GIB:.1f} GiB each"
            # The trainer holds one while the next ones are made.
            found.append(ExpectedMemory(what, ready + batch, 2 * batch, fix))
        else:
            size = source.latents.batch_size
            held = size * pixels * _ENCODED
            fix = f"lower data.backends.{source.latents.name}.batch_size={size}"
            found.append(ExpectedMemory(f"encoding {source.name}, {size} at once", held, held, fix))
    return found


def refusal(parts: Iterable[ExpectedMemory], total: int) -> ExpectedMemory | None:
    """Return the first part that cannot fit into a machine, however little is prepared ahead."""
    return next((part for part in parts if part.least > total), None)


def warnings(parts: Iterable[ExpectedMemory], free: int, held: int = 0) -> list[ExpectedMemory]:
    """Return the parts that leave little of the free bytes, `held` of which a cache may take."""
    return [part for part in parts if part.nbytes + held > _SHARE * free]


class PlannedRun(Protocol):
    """What is known of a run before it begins: a data module."""

    batch_size: int
    prefetch: Prefetch
    registry: Any
    trainer: Any


def check_memory(run: PlannedRun, sources: Mapping[str, PreparedBackend]) -> None:
    """Warn of batches that leave little memory, and refuse those that cannot fit.

    Raises:
        ConfigError: A part takes more than the machine, or its container, has.
    """
    trainer, ram_gb = run.trainer, float(run.registry.cache.ram_gb)
    shares = trainer.world_size * trainer.accumulate_grad_batches if trainer else 1
    trained = [sources[name] for name in run.registry.data if name in sources]
    parts = expected(trained, run.batch_size, run.prefetch, shares)
    total, free = machine_memory()
    stopped = refusal(parts, total)
    if stopped is not None:
        raise ConfigError(
            f"{stopped.what}, take {stopped.least / _GIB:.1f} GiB of memory, and there are "
            f"{total / _GIB:.1f} GiB; {stopped.fix}"
        )
    for part in warnings(parts, free, int(ram_gb * _GIB)):
        logger.warning(sentence(part, free, ram_gb))


def sentence(part: ExpectedMemory, free: int, ram_gb: float) -> str:
    """Return what is said of a part that leaves little memory, and what mends it."""
    beside = f", beside cache.ram_gb={ram_gb:g}," if ram_gb else ""
    return (
        f"{part.what}, take {part.nbytes / _GIB:.1f} GiB of memory{beside} and "
        f"{free / _GIB:.1f} GiB are free; {part.fix}"
    )
