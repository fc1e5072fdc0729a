"""Whole runs, seen from the test: start all ranks, wait, and read what they wrote down."""

from pathlib import Path
from typing import Any

from tests.scenarios.ranks.nursery import Child, Nursery
from tests.scenarios.ranks.run import BATCH, lines

RUN = "tests.scenarios.ranks.run:fit"
# What a test waits for at most, seconds: only where something is wrong does it take so long.
ENOUGH_S = 400.0
# Two epochs are 14 steps; validation comes after 3 and 7 batches of an epoch as well as inside
# an accumulation.
STEPS = 17
VALIDATION = {"val_check_interval": 3, "num_sanity_val_steps": -1}


def run(
    nursery: Nursery, root: Path, folder: Path, ranks: int, **settings: Any
) -> list[tuple[int | None, Child]]:
    """Run all ranks to their end, and return how each ended."""
    folder.mkdir(exist_ok=True)
    settings = {"max_steps": STEPS, **VALIDATION, **settings}
    children = nursery.start_ranks(RUN, folder, ranks, str(root), str(folder), settings)
    return [(child.wait(ENOUGH_S), child) for child in children]


def steps(folder: Path) -> dict[int, list[str]]:
    """Return the samples of each step, over all ranks; steps done twice must be the same."""
    found: dict[int, list[str]] = {}
    by_rank = lines(folder, "step")
    counts = {len(entries) for entries in by_rank.values()}
    shortest = min(counts)
    for entries in zip(*(entries[:shortest] for entries in by_rank.values()), strict=True):
        (number,) = {entry["number"] for entry in entries}
        assert {entry["rate"] for entry in entries} == {1.0 + number}
        keys = [key for entry in entries for key in entry["keys"]]
        assert len(keys) == BATCH
        assert found.setdefault(number, keys) == keys
    return found
