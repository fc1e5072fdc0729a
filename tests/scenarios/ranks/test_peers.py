"""A process that dies, hangs or fails makes the others end with a report, within a deadline."""

from pathlib import Path

import pytest

from factory.runtime.distributed.abort import EXIT_STATUS
from tests.scenarios.ranks.nursery import Nursery

# Longest silence, seconds; a busy machine must not be taken for one that hangs.
TIMEOUT_S = 2.0
# What a test waits for at most, seconds: only where something is wrong does it take so long.
ENOUGH_S = 300.0
PROCESS = "tests.scenarios.ranks.peer_process:main"


@pytest.mark.parametrize(
    ("ranks", "culprit", "trouble", "why"),
    [
        (2, 1, "kill", "ended without a word"),
        (2, 0, "kill", "ended without a word"),
        (3, 1, "kill", "ended without a word"),
        (3, 0, "kill", "ended without a word"),
        (2, 1, "raise", "failed: ValueError: no good"),
        (3, 0, "raise", "failed: ValueError: no good"),
        (2, 0, "stop", "has given no sign of life for"),
    ],
)
def test_the_others_end_and_say_why(
    nursery: Nursery, tmp_path: Path, ranks: int, culprit: int, trouble: str, why: str
) -> None:
    trouble_of = {str(culprit): trouble}
    children = nursery.start_ranks(PROCESS, tmp_path, ranks, TIMEOUT_S, trouble_of)
    for rank, child in enumerate(children):
        if rank == culprit and trouble == "stop":
            continue
        status = child.wait(ENOUGH_S)
        if rank == culprit:
            assert status == (-9 if trouble == "kill" else 1)
            continue
        # Woken by gloo where a connection broke; where nothing reached it, it left the hard way.
        assert status == (EXIT_STATUS if trouble == "stop" else 1), child.text
        assert f"rank {rank} ends because rank {culprit} {why}" in child.text
        assert f"rank {rank} (this one): training step 3" in child.text
        assert f"rank {culprit}: " in child.text
        assert "in all_reduce" in child.text
        assert "resume from the last checkpoint" in child.text


def test_one_that_runs_python_is_ended_by_an_error(nursery: Nursery, tmp_path: Path) -> None:
    trouble = {"0": "python", "1": "raise"}
    children = nursery.start_ranks(PROCESS, tmp_path, 2, TIMEOUT_S, trouble)
    assert [child.wait(ENOUGH_S) for child in children] == [1, 1]
    assert "PeerError: rank 0 ends because rank 1 failed: ValueError: no good" in children[0].text


def test_one_that_was_interrupted_reports_no_others(nursery: Nursery, tmp_path: Path) -> None:
    """A terminal gives Ctrl-C to all of them, and one is done with it before another."""
    trouble = {"0": "interrupt", "1": "raise"}
    children = nursery.start_ranks(PROCESS, tmp_path, 2, TIMEOUT_S, trouble)
    assert [child.wait(ENOUGH_S) for child in children] == [0, 1], children[0].text
    assert "ends because" not in children[0].text


def test_a_slow_step_is_no_hang(nursery: Nursery, tmp_path: Path) -> None:
    children = nursery.start_ranks(PROCESS, tmp_path, 2, 0.5, {"0": "slow"})
    assert [child.wait(ENOUGH_S) for child in children] == [0, 0], children[0].text
    assert "ends because" not in children[0].text + children[1].text
