"""Several processes of torch.distributed: equal batches, each sample once, made once for all."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from factory.runtime.distributed.abort import EXIT_STATUS
from tests.scenarios.ranks.nursery import CALM, Nursery
from tests.scenarios.ranks.run import Model, lines
from tests.scenarios.ranks.running import ENOUGH_S, RUN, run, steps
from tests.scenarios.training.building import data_module, trainer, write_folders

COUNTED = "tests.scenarios.ranks.counting:fit"


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.long)])
def test_ranks_share_equal_batches_and_validate_on_each_sample_once(
    nursery: Nursery,
    root: Path,
    tmp_path: Path,
    straight: Any,
    ranks: int,
) -> None:
    ended = run(nursery, root, tmp_path, ranks)
    assert [status for status, _ in ended] == [0] * ranks, ended[0][1].text
    assert steps(tmp_path) == straight
    shapes = [[entry["shapes"] for entry in each] for each in lines(tmp_path, "step").values()]
    assert all(each == shapes[0] for each in shapes)
    assert len(shapes) == ranks
    validated = list(lines(tmp_path, "validated").values())
    held = sorted(f"held/{number:04d}.png" for number in range(200, 205))
    for entries in zip(*validated, strict=True):  # the sanity check and every validation
        assert sorted(key for entry in entries for key in entry["keys"]) == held
    scores = {entry["score"] for entries in validated for entry in entries}
    alone = tmp_path / "alone"
    run(nursery, root, alone, 1, max_steps=1, val_check_interval=1)
    (entry, *_) = lines(alone, "validated")[0]
    # Sums of other orders differ in their last bits.
    assert all(score == pytest.approx(entry["score"], abs=1e-9) for score in scores)
    assert len(validated[0]) == 6


def test_all_ranks_scan_and_encode_once(nursery: Nursery, tmp_path: Path) -> None:
    write_folders(tmp_path)
    folder = tmp_path / "out"
    folder.mkdir()
    children = nursery.start_ranks(COUNTED, folder, 2, str(tmp_path), str(folder), {"max_steps": 2})
    assert [child.wait(ENOUGH_S) for child in children] == [0, 0], children[0].text
    counts = (folder / "counts.txt").read_text().split()
    for what, times in {"list-a": 1, "list-b": 1, "list-held": 1}.items():
        assert counts.count(what) == times, what
    # 13 + 9 + 5 pictures, each once; all captions and the empty one.
    assert sum(int(each.split("-")[1]) for each in counts if each.startswith("pictures")) == 27
    assert sum(int(each.split("-")[1]) for each in counts if each.startswith("texts")) == 28


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"data": {"seed": 8}}, ["the ranks differ in their plans", "rank 0 -> rank 1:",
                                 "seed: 7 -> 8"]),
        ({"data": {"context_parallel": 3}}, ["data.context_parallel=3 must divide"]),
        ({"data": {"repeats": 1}}, ["backends.a.repeats: 0 -> 1"]),
    ],
)  # fmt: skip
def test_a_rank_with_another_config_is_told_before_the_first_step(
    nursery: Nursery, root: Path, tmp_path: Path, settings: dict[str, Any], why: list[str]
) -> None:
    own = {"max_steps": 3}
    port = str(nursery.ask({"port": True}))
    children = []
    for rank, given in enumerate((own, {**own, **settings})):
        env = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": str(rank),
            "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
            "TORCHELASTIC_RUN_ID": "tests",
        }  # fmt: skip
        out = tmp_path / f"rank{rank}.txt"
        children.append(nursery.start(RUN, out, str(root), str(tmp_path), given, **env))
    assert [child.wait(ENOUGH_S) for child in children] == [1, 1]
    for words in why:
        assert words in children[1].text
    assert not list(tmp_path.glob("log/*.jsonl"))


@pytest.mark.parametrize(
    ("victim", "signal", "statuses", "why"),
    [
        (1, "SIGKILL", [1, -9], "ended without a word"),
        (0, "raise", [1, 1], "failed: ValueError: no good"),
        (1, "SIGSTOP", [EXIT_STATUS, None], "has given no sign of life"),
    ],
)
def test_a_rank_in_trouble_ends_the_run_with_a_report(
    nursery: Nursery, root: Path, tmp_path: Path, victim: int, signal: str,
    statuses: list[int | None], why: str,
) -> None:  # fmt: skip
    settings = {"max_steps": 9, "kill": {str(victim): ["training_step", 4, signal]}}
    children = nursery.start_ranks(RUN, tmp_path, 2, str(root), str(tmp_path), settings)
    for child, status in zip(children, statuses, strict=True):
        if status is not None:
            assert child.wait(ENOUGH_S) == status, child.text
    survivor = children[1 - victim].text
    assert f"rank {1 - victim} ends because rank {victim} {why}" in survivor
    # Micro-batches are steps here; the dead one's last line is at most a moment old.
    assert "(this one): training epoch 0, step 3" in survivor
    assert f"rank {victim}: " in survivor


def test_a_rank_whose_storage_hangs_tells_the_others(
    nursery: Nursery, root: Path, tmp_path: Path
) -> None:
    settings = {"max_steps": 9, "prefetch": {"timeout_s": 1.0}, "stall": {"1": 3}}
    children = nursery.start_ranks(RUN, tmp_path, 2, str(root), str(tmp_path), settings)
    assert [child.wait(ENOUGH_S) for child in children] == [1, 1]
    assert "FetchError: no batch within prefetch.timeout_s=1 s" in children[1].text
    why = "rank 0 ends because rank 1 failed: FetchError: no batch within prefetch.timeout_s=1 s"
    assert why in children[0].text
    assert children[1].text.count("ends because") == 0


@pytest.mark.long
def test_with_the_launcher_of_lightning(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.scenarios.ranks.test_ddp", str(root), str(tmp_path)]
    here = Path(__file__).parents[3]
    env = {**os.environ, **CALM}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=here, env=env, timeout=500, check=False
    )
    # The child is killed; Lightning would look after it only every five seconds, and then end
    # its parent by a signal.
    assert done.returncode == 1, done.stderr
    assert "rank 0 ends because rank 1 ended without a word" in done.stderr


def _launch(root: Path, folder: Path) -> None:
    (folder / "log").mkdir(exist_ok=True)
    data = data_module(root, peer_timeout_s=2.0)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    model = Model(folder / "log", ("training_step", 3, "SIGKILL") if rank else None)
    trainer(folder, devices=2, strategy="ddp", max_steps=6, max_epochs=-1).fit(
        model, datamodule=data
    )


if __name__ == "__main__":
    _launch(Path(sys.argv[1]), Path(sys.argv[2]))
