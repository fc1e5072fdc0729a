"""300 steps of batches are those of version 0.1, to the byte, whoever makes and shares them."""

import json
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import product
from pathlib import Path

import pytest

from factory import Batch, FactoryDataModule
from tests.compatibility.hashing import EVERY, chain, digest
from tests.compatibility.world import HERE, module, write_world

STEPS = 300
MODES, RANKS = ("inline", "thread", "process"), (1, 2, 4)
EXACT = ("encoder/image=none", "+encoder.image._target_=tests.compatibility.encoders.BlockSums")
BARE = ("encoder/image=none", "encoder/text=none")
SCENARIOS = {
    "mixture": EXACT,
    "sliders": (*BARE, "sampling=auto", "sampling.epoch_steps=37"),
    "conditioning": BARE,
    "stream": EXACT,
}  # fmt: skip
# Steps of the usual trials, which have each scenario, mode and number of ranks; all 300 of every
# combination are long ones.
USUAL = {
    ("mixture", "inline", 1): 300, ("mixture", "thread", 4): 75, ("mixture", "process", 1): 75,
    ("sliders", "thread", 2): 300, ("conditioning", "inline", 2): 75,
    ("conditioning", "thread", 1): 100, ("stream", "inline", 1): 150, ("stream", "thread", 4): 50,
}  # fmt: skip
# Where a state was taken, and of what: plans of which no part hangs on the machine, as the size of
# an encoded video does.
STEPS_BEFORE, RESUMED = 130, ("sliders", "conditioning", "stream")
CASES = [
    *(pytest.param(*case, steps) for case, steps in USUAL.items()),
    *(
        pytest.param(*case, STEPS, marks=pytest.mark.long)
        for case in product(SCENARIOS, MODES, RANKS)
        if USUAL.get(case) != STEPS
    ),
]
pytestmark = pytest.mark.xdist_group("compatibility")  # the world is written once


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world") / "data"
    write_world(root)
    return root


def started(root: Path, scenario: str, mode: str = "inline") -> FactoryDataModule:
    return module(root, [f"data=witness_{scenario}", *SCENARIOS[scenario], f"prefetch={mode}"])


def hashes(
    root: Path, scenario: str, mode: str = "inline", ranks: int = 1, steps: int = STEPS
) -> list[str]:
    """Return the hashes of a scenario's batches; a relative path leads to its stream."""
    with ExitStack() as stack:
        modules = [stack.enter_context(started(root, scenario, mode)) for _ in range(ranks)]
        modules[0].prepare_data()
        shares = [
            data.batches(max_steps=steps, rank=rank, world_size=ranks)
            for rank, data in enumerate(modules)
        ]
        return list(chain(zip(*shares, strict=True)))


@pytest.mark.parametrize(("scenario", "mode", "ranks", "steps"), CASES)
def test_batches_are_those_of_version_0_1(
    world: Path, scenario: str, mode: str, ranks: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    known = json.loads((HERE / "fixtures/batches.json").read_text())[scenario]
    found = hashes(world, scenario, mode, ranks, steps)
    for number, (ours, theirs) in enumerate(zip(found, known, strict=False), start=1):
        last = number * EVERY
        assert ours == theirs, f"a batch of steps {last - EVERY + 1} to {last} is another one"
    assert len(found) * EVERY == steps


def committed(data: FactoryDataModule, batches: Iterable[Batch]) -> list[str]:
    """Return the hashes of batches that are trained on, one by one."""
    found = []
    for batch in batches:
        found.append(digest([batch]).hex()[:16])
        data.commit()
    return found


@pytest.mark.parametrize("scenario", RESUMED)
def test_states_of_version_0_1_go_on(
    world: Path, scenario: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    kept = json.loads((HERE / "fixtures/states.json").read_text())[scenario]
    with started(world, scenario) as data:
        data.load_state_dict(kept["state"])
        assert committed(data, data.batches(max_steps=STEPS_BEFORE + EVERY)) == kept["next"]
