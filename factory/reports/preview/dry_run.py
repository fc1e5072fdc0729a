"""Dry run: scans, decides and plans as a run would; encodes and trains nothing."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from factory.backends.prepared import PreparedBackend
from factory.backends.sample_ids import resolve
from factory.errors import ConfigError, EmptyBackendError, FactoryError, PlanError
from factory.lightning.datamodule import FactoryDataModule
from factory.registry.plan_inputs import plan_backend
from factory.registry.prepare import survey
from factory.registry.reopen import check_shared
from factory.reports.preview.backend_counts import batch_of, count, count_texts
from factory.reports.preview.epochs import lay_out
from factory.reports.preview.mixture_problems import mixture_problems
from factory.reports.preview.sample_problems import sample_problems
from factory.reports.preview.summary import Problem, RunLimits, Summary
from factory.reports.wording import place, redact, size
from factory.runtime.prefetch.expected_memory import (
    expected,
    machine_memory,
    refusal,
    sentence,
    warnings,
)
from factory.sampling.plan import Plan
from factory.workspace import Workspace

_GRAVITY = {"stop": 0, "warn": 1, "note": 2}


@dataclass(frozen=True)
class DryRun:
    """A dry run.

    Attributes:
        summary: What it found out.
        sources: The backends of samples, by name, to look at single ones.
    """

    summary: Summary
    sources: Mapping[str, PreparedBackend]


def preview_run(data: FactoryDataModule, run: RunLimits | None = None) -> DryRun:
    """Scan, decide and plan as a training run would, and say what would come of it.

    Facts are published as the run itself would publish them, so that it need not measure
    again. What keeps the run from training is a problem in the summary, not an error.

    Args:
        data: The data module of the run.
        run: What the trainer will do; one endless run on one device if None.

    Raises:
        StorageError: The cache's storage cannot be reached or written to.
    """
    run = run or RunLimits()
    registry = data.registry
    registry.cache.storage.check(write=True)
    problems = list(_refusals(data, run))
    sources, errors = survey(registry, seed=data.seed)
    problems += [_stopped(name, error) for name, error in errors.items()]
    plan, laid_out = None, None
    try:
        if any(name in sources for name in registry.data):
            plan = _plan(data, sources)
            laid_out = lay_out(plan, run)
    except (PlanError, ConfigError) as error:
        problems.append(_stopped(None, error))
    mode = str(data.sampling.short_batch)
    backends = tuple(
        count(source, batch_of(source, data.batch_size), mode, laid_out, registry.cache)
        for source in sources.values()
    )
    if plan is not None and laid_out is not None:
        problems += mixture_problems(plan, laid_out, run)
    problems += _memory(data, sources, run)
    problems += sample_problems(backends, sources, data.batch_size, mode)
    known = Summary(
        backends,
        laid_out,
        count_texts(list(sources.values())),
        place(registry.cache.storage.identity, registry.cache.prefix),
        _free(registry.cache),
        (),
    )
    problems += _space(known)
    ranked = sorted(problems, key=lambda problem: _GRAVITY[problem.level])
    return DryRun(
        Summary(**{**vars(known), "problems": tuple(ranked)}),
        sources,
    )


def _plan(data: FactoryDataModule, sources: Mapping[str, PreparedBackend]) -> Plan:
    there = [sources[name] for name in data.registry.data if name in sources]
    excluded = resolve(data.exclude, sources, data.registry.streams)
    return data.sampling.plan(
        [plan_backend(source) for source in there],
        batch_size=data.batch_size,
        seed=data.seed,
        exclude={name: each for name, each in excluded.items() if name in data.registry.data},
    )


def _refusals(data: FactoryDataModule, run: RunLimits) -> Iterator[Problem]:
    """Yield what a run is refused for before anything is scanned."""
    checks = (data.registry.check_alignment, lambda: check_shared(data.registry, run.ranks))
    for check in checks:
        try:
            check()
        except FactoryError as error:
            yield _stopped(None, error)


def _stopped(name: str | None, error: FactoryError) -> Problem:
    """Turn an error that a run would end with into a problem: what is wrong; what mends it."""
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
    text, found, fix = redact(str(error) + notes).rpartition("; ")
    text = text if found else fix
    if name is not None and isinstance(error, EmptyBackendError):
        text = text.removeprefix(f"backend {name!r}: ")
    return Problem("stop", name, text, fix if found else "")


def _memory(
    data: FactoryDataModule, sources: Mapping[str, PreparedBackend], run: RunLimits
) -> list[Problem]:
    """Return what is wrong with the memory that batches take on this machine."""
    trained = [source for source in sources.values() if source.name in data.registry.data]
    parts = expected(trained, data.batch_size, data.prefetch, run.ranks * run.micros)
    (total, free), ram_gb = machine_memory(), data.registry.cache.ram_gb
    stopped = refusal(parts, total)
    if stopped is not None:
        text = f"{stopped.what}, take {size(stopped.least)} of memory, and there are {size(total)}"
        return [Problem("stop", None, text, stopped.fix)]
    held = int(ram_gb * 2**30)
    return [
        Problem("warn", None, *sentence(part, free, ram_gb).rpartition("; ")[::2])
        for part in warnings(parts, free, held)
    ]


def _free(cache: Workspace) -> int | None:
    """Return free bytes where the cache is; None where that cannot be told."""
    folder = cache.storage.local_path(cache.prefix)
    if folder is None:
        return None
    there: Path = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free


def _space(known: Summary) -> list[Problem]:
    needed, free = known.cache_bytes, known.free_bytes
    if needed is None or free is None or needed <= free:
        return []
    return [
        Problem(
            "warn",  # it may hold the rows already
            None,
            f"the cache needs {size(needed)} and {known.cache} has {size(free)} left",
            "storage@cache=local cache.storage.root=FOLDER_WITH_SPACE",
        )
    ]
