"""Real runs with Lightning, killed for real, resumed with other settings: the same steps."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.ranks.nursery import Nursery
from tests.scenarios.ranks.run import forget, lines
from tests.scenarios.ranks.running import STEPS, run, steps

HOOKS = (
    "training_step", "optimizer_step", "on_train_batch_end", "on_save_checkpoint",
    "validation_step",
)  # fmt: skip


def trial(nursery: Nursery, root: Path, folder: Path, straight: Any, chance: random.Random) -> None:
    """Kill a run until it is through, each time going on with other settings."""
    found: dict[int, list[str]] = {}
    folder.mkdir()
    for attempt in range(12):
        ranks = chance.choice([1, 1, 2])
        kill = [chance.choice(HOOKS), chance.randint(1, 8), "SIGKILL"] if attempt < 3 else None
        victim = str(chance.randrange(ranks))
        settings: dict[str, Any] = {
            "accumulate_grad_batches": chance.choice([1, 2]),
            "prefetch": {"batches": chance.randint(1, 6), "workers": chance.randint(1, 3)},
            "kill": {victim: kill} if kill else {},
        }
        ended = run(nursery, root, folder, ranks, **settings)
        assert None not in [status for status, _ in ended]
        for number, keys in steps(folder).items() if lines(folder, "step") else ():
            assert found.setdefault(number, keys) == keys
        if all(status == 0 for status, _ in ended):
            break
        forget(folder)
    else:
        raise AssertionError([child.text for _, child in ended])
    # Each rank writes a step down before it is saved, but `steps` takes those alone that all
    # ranks wrote: where one died early, a step may have been saved and seen by the other only.
    assert found == {number: straight[number] for number in found}
    assert max(found) == STEPS - 1


@pytest.mark.parametrize("seed", [1])
def test_killed_at_random_and_resumed(
    nursery: Nursery, root: Path, tmp_path: Path, straight: Any, seed: int
) -> None:
    trial(nursery, root, tmp_path / "run", straight, random.Random(seed))


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(10, 50))
def test_killed_at_random_and_resumed_many_times(
    nursery: Nursery, root: Path, tmp_path: Path, straight: Any, seed: int
) -> None:
    trial(nursery, root, tmp_path / "run", straight, random.Random(seed))


@pytest.mark.parametrize(
    ("hook", "number", "first", "then"),
    [
        # Between the micro-batches of a step; in a validation; while a checkpoint is saved.
        ("training_step", 4, {"accumulate_grad_batches": 2}, {"accumulate_grad_batches": 4}),
        ("validation_step", 8, {}, {"accumulate_grad_batches": 2}),
        ("on_save_checkpoint", 5, {"accumulate_grad_batches": 4}, {}),
    ],
)
def test_killed_at_a_bad_moment(
    nursery: Nursery, root: Path, tmp_path: Path, straight: Any,
    hook: str, number: int, first: dict[str, Any], then: dict[str, Any],
) -> None:  # fmt: skip
    killing = {"kill": {"0": [hook, number, "SIGKILL"]}}
    ((status, _),) = run(nursery, root, tmp_path, 1, **first, **killing)
    assert status == -9
    before = steps(tmp_path)
    forget(tmp_path)
    ((status, child),) = run(nursery, root, tmp_path, 1, **then)
    assert status == 0, child.text
    after = steps(tmp_path)
    assert before | after == straight
    assert min(after) > 0
