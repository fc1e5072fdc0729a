"""Plain torch under torchrun, and Fabric: every rank has its share of the plan, and no other's."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.ranks.nursery import Nursery
from tests.scenarios.ranks.running import ENOUGH_S
from tests.scenarios.training.building import data_module

LOOP = "tests.scenarios.ranks.plain:loop"


@pytest.fixture(scope="module")
def planned(root: Path) -> list[list[str]]:
    """Return the keys of the plan's first steps, by global step."""
    data = data_module(root)
    data.setup()
    found = []
    for number in range(21):
        step = data.plan.at(*data.plan.position(number))
        facts = data.sources[step.backend].catalog.facts
        found.append([facts.key(int(row)) for row in step.rows])
    data.close()
    return found


def run(
    nursery: Nursery, call: str, root: Path, folder: Path, ranks: int, **settings: Any
) -> list[str]:
    """Run all ranks to their end, and return what they said."""
    folder.mkdir(exist_ok=True)
    children = nursery.start_ranks(call, folder, ranks, str(root), str(folder), settings)
    ended = [child.wait(ENOUGH_S) for child in children]
    assert ended == [0] * ranks, children[0].text + children[-1].text
    return [child.text for child in children]


def taken(folder: Path, ranks: int) -> list[list[tuple[int, list[str]]]]:
    """Return the (step, keys) of each rank's micro-batches, and forget them."""
    found = []
    for rank in range(ranks):
        file = folder / f"{rank}.jsonl"
        lines = map(json.loads, file.read_text().splitlines())
        found.append([(line["number"], line["keys"]) for line in lines])
        file.unlink()
    return found


def shares(
    planned: list[list[str]], steps: range, ranks: int, micros: int = 1
) -> list[list[tuple[int, list[str]]]]:
    """Return what each rank is to get: contiguous parts of each global batch."""
    size = len(planned[0]) // (ranks * micros)
    return [
        [
            (step, planned[step][(rank * micros + micro) * size :][:size])
            for step in steps
            for micro in range(micros)
        ]
        for rank in range(ranks)
    ]


@pytest.mark.parametrize(("ranks", "micros", "group"), [(2, 1, True), (2, 2, True), (2, 1, False)])
def test_every_rank_of_a_loop_has_its_share(
    nursery: Nursery, root: Path, tmp_path: Path, planned: Any, ranks: int, micros: int, group: bool
) -> None:
    run(nursery, LOOP, root, tmp_path, ranks, max_steps=17, micros=micros, group=group)
    assert taken(tmp_path, ranks) == shares(planned, range(17), ranks, micros)


def test_a_loop_goes_on_where_it_stopped_on_other_ranks(
    nursery: Nursery, root: Path, tmp_path: Path, planned: Any
) -> None:
    done = 0
    for ranks, micros, until in ((2, 1, 3), (1, 2, 9), (2, 2, 16), (1, 1, 21)):
        run(nursery, LOOP, root, tmp_path, ranks, max_steps=until, micros=micros)
        assert taken(tmp_path, ranks) == shares(planned, range(done, until), ranks, micros)
        done = until


def test_the_ranks_may_come_as_arguments(
    nursery: Nursery, root: Path, tmp_path: Path, planned: Any
) -> None:
    found = []
    for rank in range(2):
        data = data_module(root, rank=rank, world_size=2)
        data.setup()
        found.append([(batch.global_step, batch.keys) for batch in data.train_dataloader()])
        data.close()
    assert found == shares(planned, range(7), 2)


def test_a_group_that_comes_after_the_batches_is_refused(
    nursery: Nursery, root: Path, tmp_path: Path
) -> None:
    run(nursery, "tests.scenarios.ranks.plain:late", root, tmp_path, 2)


def test_fabric_takes_the_loader_as_it_is(
    nursery: Nursery, root: Path, tmp_path: Path, planned: Any
) -> None:
    run(nursery, "tests.scenarios.ranks.plain:fabric", root, tmp_path, 2)
    assert taken(tmp_path, 2) == shares(planned, range(21), 2)
    held = [json.loads((tmp_path / f"held{rank}.json").read_text()) for rank in range(2)]
    assert sorted(held[0] + held[1]) == [f"held/{number:04d}.png" for number in range(200, 205)]


def test_a_loop_that_commits_nothing_is_warned_of(
    nursery: Nursery, root: Path, tmp_path: Path
) -> None:
    said = run(nursery, LOOP, root, tmp_path, 2, max_steps=3, commits=False)
    assert "3 batches were given out since" in said[0]
    assert "data.commit()" in said[0]
    assert json.loads((tmp_path / "state.json").read_text())["step"] == 0


def test_ranks_of_a_loop_that_mean_another_run_are_told(
    nursery: Nursery, root: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"max_steps": 3}
    port = str(nursery.ask({"port": True}))
    children = []
    for rank in range(2):
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2",
               "RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}  # fmt: skip
        given = {**settings, "data": {"seed": 7 + rank}}
        out = tmp_path / f"rank{rank}.txt"
        children.append(nursery.start(LOOP, out, str(root), str(tmp_path), given, **env))
    assert [child.wait(ENOUGH_S) for child in children] == [1, 1]
    assert "the ranks differ in their plans" in children[1].text
    assert "seed: 7 -> 8" in children[1].text


def test_a_rank_of_a_loop_that_fails_tells_the_others(
    nursery: Nursery, root: Path, tmp_path: Path
) -> None:
    settings = {"max_steps": 9, "dies": "1"}
    children = nursery.start_ranks(LOOP, tmp_path, 2, str(root), str(tmp_path), settings)
    assert children[1].wait(ENOUGH_S) == 1
    assert children[0].wait(ENOUGH_S) not in (0, None)
    assert "rank 0 ends because rank 1 failed: ValueError: no good" in children[0].text


def test_one_rank_prepares_while_the_others_wait(nursery: Nursery, tmp_path: Path) -> None:
    from tests.scenarios.training.building import write_folders

    write_folders(tmp_path / "new")
    run(nursery, LOOP, tmp_path / "new", tmp_path / "out", 2, max_steps=2)
    first, second = taken(tmp_path / "out", 2)
    assert [step for step, _ in first] == [step for step, _ in second] == [0, 1]
    assert {len(keys) for _, keys in first + second} == {2}
