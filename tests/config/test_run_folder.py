"""Which run is the newest, and what a run that continues it takes from it."""

import os
from pathlib import Path

import pytest

from factory.commands import cli
from factory.config.run_folder import continued, newest_checkpoint


def run(folder: Path, *names: str, saved: float = 1e9, begun: float | None = None) -> Path:
    """Make a run's folder with checkpoints of a time, s."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / ".hydra").mkdir()
    if begun is not None:
        os.utime(folder / ".hydra", (begun, begun))
    for number, name in enumerate(names):
        file = folder / "checkpoints" / name
        file.touch()
        os.utime(file, (saved + number, saved + number))
    return folder


def test_the_newest_run_counts_not_the_newest_file(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    run(tmp_path / "train/2026-01-01_10-00-00", "last.ckpt", saved=3e9)  # copied since
    newer = run(tmp_path / "train/2026-01-01_11-00-00", "last.ckpt")
    run(tmp_path / "train/2026-01-01_12-00-00")  # failed before it saved anything
    assert newest_checkpoint(tmp_path) == (newer, newer / "checkpoints/last.ckpt")
    # Of several in one second, by their numbers.
    run(tmp_path / "train/2026-01-01_11-00-00-2", "last.ckpt")
    newest = run(tmp_path / "train/2026-01-01_11-00-00-10", "last.ckpt")
    assert newest_checkpoint(tmp_path) == (newest, newest / "checkpoints/last.ckpt")


def test_runs_named_otherwise_count_by_the_time_of_their_config(tmp_path: Path) -> None:
    run(tmp_path / "train/2026-01-01_10-00-00", "last.ckpt")
    mine = run(tmp_path / "mine", "last.ckpt", saved=1.0, begun=4e9)
    run(tmp_path / "older", "last.ckpt", saved=5e9, begun=1.0)
    assert newest_checkpoint(tmp_path) == (mine, mine / "checkpoints/last.ckpt")


def test_jobs_of_a_sweep_count_by_number_and_not_for_their_own_sweep(tmp_path: Path) -> None:
    before = run(tmp_path / "train/2026-01-01_09-00-00", "last.ckpt")
    sweep = tmp_path / "train/sweep-2026-01-01_10-00-00"
    for job in ("0", "2", "10"):
        run(sweep / job, "last.ckpt")
    (sweep / "multirun.yaml").touch()
    assert newest_checkpoint(tmp_path) == (sweep / "10", sweep / "10/checkpoints/last.ckpt")
    assert newest_checkpoint(tmp_path, sweep / "11") == (before, before / "checkpoints/last.ckpt")


def test_of_a_run_that_keeps_others_the_last_one_is_taken(tmp_path: Path) -> None:
    first = run(tmp_path / "a", "epoch=0-step=100.ckpt", "epoch=0-step=200.ckpt")
    assert newest_checkpoint(tmp_path) == (first, first / "checkpoints/epoch=0-step=200.ckpt")
    (first / "checkpoints/last.ckpt").touch()
    os.utime(first / "checkpoints/last.ckpt", (1.0, 1.0))
    assert newest_checkpoint(tmp_path) == (first, first / "checkpoints/last.ckpt")


@pytest.mark.parametrize(
    ("former", "given", "stays"),
    [
        (["data=multi", "seed=1"], ["seed=2"], ["data=multi"]),
        (["seed=1"], ["ckpt_path=last", "+seed=2"], []),
        (["data=multi", "data.backends.web.repeats=2", "data/crop=square"], ["data=single"], []),
        (["data_dir=x"], ["data=single"], ["data_dir=x"]),
        (["storage=s3", "storage.bucket=b"], ["storage=local"], []),
        (["storage@cache=local", "cache.storage.root=/a"], ["storage@cache=s3"], []),
        (["storage@cache=local", "cache.storage.root=/a"], ["cache.storage.root=/b"],
         ["storage@cache=local"]),
        (["~callbacks.loss", "trainer.max_steps=3"], ["trainer.max_steps=9"], ["~callbacks.loss"]),
    ],
)  # fmt: skip
def test_what_is_given_now_replaces_what_was_given(
    former: list[str], given: list[str], stays: list[str]
) -> None:
    assert continued(former, given) == stays


def test_a_run_that_goes_on_takes_the_options_of_the_former_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    folder = run(tmp_path / "train/2026-01-01_10-00-00", "last.ckpt")
    (folder / ".hydra/overrides.yaml").write_text("[data=mine, 'storage.root=a b', seed=3]")
    (folder / ".hydra/hydra.yaml").write_text(
        f"hydra: {{runtime: {{config_sources: [{{path: {tmp_path}, provider: command-line}}]}}}}"
    )
    given = ["ckpt_path=last", "seed=4", "data.backends.web.repeats=2"]
    assert cli.continuing(given) == [
        "--config-dir", str(tmp_path), "data=mine", "storage.root=a b", *given
    ]  # fmt: skip
    assert capsys.readouterr().err == (
        f"ckpt_path=last goes on with {folder}/checkpoints/last.ckpt\n"
        "  and the options of its run: data=mine 'storage.root=a b'\n"
    )
    # As the processes do that Lightning starts with what the first one was started with.
    monkeypatch.setenv("LOCAL_RANK", "1")
    again = cli.continuing(cli.continuing(given))
    assert again == cli.continuing(given)
    assert capsys.readouterr().err == ""
    assert cli.continuing(["seed=1"]) == ["seed=1"]
    assert cli.continuing(["ckpt_path=a.ckpt"]) == ["ckpt_path=a.ckpt"]
