"""Quarantine: samples that turned out to be unusable, and the limit on how many may."""

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from factory.catalog.facts import SIZE_DIFFERS
from factory.errors import QuarantineError
from factory.limits import AtLeast, Share, check_limits
from factory.runtime.batches.batch import Batch, Replacement
from factory.untrusted_text import json_text

logger = logging.getLogger("factory")

# Samples named in the error that stops a run; the file has all of them.
NAMED = 3


@dataclass(frozen=True)
class QuarantineLimit:
    """How many samples of a backend may turn out damaged or gone before the run is stopped.

    Attributes:
        share: Part of a backend's samples, 0 to 1, after which the run stops.
        at_least: Samples that may be unusable whatever their share.
        path: File that lists them; None writes none.
    """

    share: Annotated[float, Share()] = 0.01
    at_least: Annotated[int, AtLeast(0)] = 10
    path: str | None = None

    def __post_init__(self) -> None:
        """Refuse shares outside 0 to 1 and counts below 0."""
        check_limits(self, "data.quarantine")

    def allowed(self, kept: int) -> int:
        """Return how many samples of a backend of `kept` samples may be unusable."""
        return max(self.at_least, math.floor(self.share * kept))


class Quarantine:
    """What this process found unusable while it trained, each sample counted once.

    Every rank keeps its own: which samples a rank meets follows from the plan.
    """

    def __init__(
        self,
        limit: QuarantineLimit,
        kept: Mapping[str, int],
        rank: int = 0,
        streams: Collection[str] = (),
    ) -> None:
        """Begin with nothing found.

        Args:
            limit: How many are allowed.
            kept: Samples of each backend by name; of a stream those of a pass in an epoch.
            rank: This process, from 0; those above 0 write files of their own.
            streams: Names of the streams, which no scan could drop anything from.
        """
        self._streams = frozenset(streams)
        self._limit, self._kept = limit, dict(kept)
        self._path = None if limit.path is None else _of_rank(Path(limit.path), rank)
        self.found: dict[str, dict[str, Replacement]] = {}

    def restart(self) -> None:
        """Do nothing: what was found stays found."""

    def note(self, batch: Batch) -> None:
        """Note what a batch replaced, at the moment the batch is used.

        Raises:
            QuarantineError: More samples of its backend are unusable than are allowed.
        """
        for replaced in batch.replaced:
            known = self.found.setdefault(batch.backend, {})
            if replaced.key in known:
                continue
            known[replaced.key] = replaced
            self._write(batch, replaced)
            logger.warning(
                "%s: %s cannot be used (%s failed: %s); %s stands in for it",
                batch.backend, replaced.key, replaced.stage, replaced.reason,
                replaced.substitute_key,
            )  # fmt: skip
            kept = self._kept.get(batch.backend, 0)
            if len(known) > self._limit.allowed(kept):
                found = {key: f"{each.stage} failed: {each.reason}" for key, each in known.items()}
                scanned = batch.backend not in self._streams
                raise too_many(batch.backend, found, kept, self._limit, scanned=scanned)

    def _write(self, batch: Batch, replaced: Replacement) -> None:
        if self._path is None:
            return
        line = {"backend": batch.backend, "global_step": batch.global_step, **replaced._asdict()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json_text(line) + "\n")


def too_many(
    backend: str,
    found: Mapping[str, str],
    kept: int,
    limit: QuarantineLimit,
    *,
    scanned: bool = True,
) -> QuarantineError:
    """Return the error that says which samples cannot be used, and what mends it.

    Args:
        backend: Name of the backend.
        found: Why each sample cannot be used, by storage key.
        kept: Samples of the backend.
        limit: How many were allowed.
        scanned: Whether the backend is scanned before it is trained on; a stream is not.
    """
    where = f"data.backends.{backend}.metadata"
    sizes = (
        "have the files measured instead of reading their sizes from a table "
        f"({where}.width_column=null, {where}.height_column=null), "
        if any(SIZE_DIFFERS in why for why in found.values()) else ""
    )  # fmt: skip
    verify = (
        "drop damaged ones at the scan by "
        f"{where}.verify=true, " if scanned and not sizes else ""
    )  # fmt: skip
    listed = f"; all are listed in {limit.path}" if limit.path is not None else ""
    return QuarantineError(
        f"backend {backend!r}: {len(found)} of {kept} samples cannot be used, "
        f"{limit.allowed(kept)} may be (data.quarantine.share={limit.share:g}, "
        f"data.quarantine.at_least={limit.at_least}):\n{_lines(found)}\n"
        f"Mend or remove them and continue from the checkpoint, {sizes}{verify}or raise "
        f"data.quarantine.share{listed}"
    )


def none_left(backend: str, found: Mapping[str, str], bucket: str) -> QuarantineError:
    """Return the error that a bucket has no sample left which could stand in for another.

    Args:
        backend: Name of the backend.
        found: Why each sample cannot be used, by storage key.
        bucket: Name of the bucket.
    """
    return QuarantineError(
        f"backend {backend!r}: no sample of bucket {bucket} is left to stand in for those that "
        f"cannot be used:\n{_lines(found)}\nMend or remove them and start anew, so that they are "
        f"not planned; data.backends.{backend}.metadata.verify=true finds damaged ones at the scan"
    )


def _lines(found: Mapping[str, str]) -> str:
    named = [f"  {key}: {why}" for key, why in found.items()]
    more = [f"  and {len(named) - NAMED} more"] if len(named) > NAMED else []
    return "\n".join([*named[:NAMED], *more])


def _of_rank(path: Path, rank: int) -> Path:
    return path if not rank else path.with_name(f"{path.stem}-rank{rank}{path.suffix}")
