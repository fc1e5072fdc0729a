"""Run folders: each run has its own, and the newest run is found by the one that continues it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from factory.commands import cli
from factory.config import run_folder
from factory.config.run_folder import claim, continued, newest_checkpoint
from factory.errors import ConfigError, StorageError


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


ROOT = Path(__file__).parent.parent.parent
# A program of Hydra's over the factory's config that says where it would write.
PROGRAM = f"""
import sys
import hydra
from hydra.core.hydra_config import HydraConfig
from factory.commands import cli
from factory.config import compose
compose.register()
@hydra.main(version_base="1.3", config_path={str(ROOT / "conf")!r}, config_name="config")
def main(cfg):
    print(HydraConfig.get().runtime.output_dir)
cli.run(main)
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch):
    """Forget launchers around the tests, and locks of the folders that a test has taken."""
    for name in ("WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(run_folder, "_LOCKED", [])
    yield
    for descriptor in run_folder._LOCKED:
        os.close(descriptor)


def config(folder: Path, *named: str, **more: Any) -> Any:
    return OmegaConf.create(
        {
            "ckpt_path": None,
            "hydra": {
                "run": {"dir": str(folder)}, "sweep": {"dir": str(folder)},
                "output_subdir": ".hydra", "overrides": {"hydra": list(named)},
            },
            **more,
        }
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_runs_of_one_second_have_a_folder_each(tmp_path: Path, kind: str) -> None:
    wanted = tmp_path / "outputs/it's 12-00-00"

    def begin(_: int) -> tuple[str, str]:
        cfg = config(wanted)
        claim(cfg, kind)
        return cfg.hydra[kind].dir, cfg.hydra.overrides.hydra[-1]

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(begin, range(8)))
    names = [str(wanted), *(f"{wanted}-{n}" for n in range(2, 9))]
    assert sorted(folder for folder, _ in made) == sorted(names)
    assert all(Path(folder).is_dir() for folder in names)
    # What Hydra composes jobs of a sweep from names the same folder.
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for folder, override in made:
        [parsed] = OverridesParser.create().parse_overrides([override])
        assert (parsed.key_or_group, parsed.value()) == (f"hydra.{kind}.dir", folder)


def test_a_folder_that_was_named_is_taken_unless_a_run_has_trained_there(tmp_path: Path) -> None:
    named = f"hydra.run.dir={tmp_path}/a"
    claim(config(tmp_path / "a", named), "run")
    os.close(run_folder._LOCKED.pop())
    (tmp_path / "a/.hydra").mkdir()  # that run ended before its first step
    claim(config(tmp_path / "a", named), "run")
    with pytest.raises(ConfigError, match="another run is writing into"):
        claim(config(tmp_path / "a", named), "run")
    os.close(run_folder._LOCKED.pop())
    (tmp_path / "a/checkpoints").mkdir()
    with pytest.raises(ConfigError, match=r"holds results of a run already.*ckpt_path=.*last.ckpt"):
        claim(config(tmp_path / "a", named), "run")
    checkpoint = str(tmp_path / "a/checkpoints/last.ckpt")
    claim(config(tmp_path / "a", named, ckpt_path=checkpoint), "run")


def test_a_sweep_is_not_mixed_with_another(tmp_path: Path) -> None:
    (tmp_path / "s/0/.hydra").mkdir(parents=True)
    (tmp_path / "s/0/ledger").mkdir()
    with pytest.raises(ConfigError, match=r"hydra.sweep.dir=.* holds results of a run already"):
        claim(config(tmp_path / "s", f"hydra.sweep.dir={tmp_path}/s"), "sweep")


def test_processes_of_one_run_share_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "a").mkdir()
    cfg = config(tmp_path / "a")
    claim(cfg, "run")
    assert cfg.hydra.run.dir == str(tmp_path / "a")


def test_where_no_folder_can_be_made_a_setting_is_named(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file")
    with pytest.raises(StorageError, match=r"hydra.run.dir=FOLDER .* paths.output_dir=FOLDER"):
        claim(config(tmp_path / "outputs/a"), "run")


def program(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "FACTORY_DEBUG"}
    (cwd / "program.py").write_text(PROGRAM)
    return subprocess.run(
        [sys.executable, "program.py", *arguments], cwd=cwd, capture_output=True, text=True,
        env={**environment, "PYTHONPATH": str(ROOT)}, check=False, timeout=500,
    )  # fmt: skip


def test_jobs_of_two_sweeps_of_one_second_lie_apart(tmp_path: Path) -> None:
    (tmp_path / "my/local").mkdir(parents=True)
    (tmp_path / "my/local/default.yaml").write_text(
        "# @package hydra\nsweep: {dir: sweeps/12-00-00}\nrun: {dir: runs/12-00-00}\n"
    )
    sweep = ("--config-dir", "my", "-m", "sampling=uniform,auto")
    for number in ("", "-2"):
        done = program(tmp_path, *sweep)
        assert done.returncode == 0, done.stderr
        told = [line for line in done.stdout.splitlines() if line.startswith("/")]
        assert told == [str(tmp_path / f"sweeps/12-00-00{number}/{job}") for job in (0, 1)]
    assert {each.name for each in (tmp_path / "sweeps").iterdir()} == {"12-00-00", "12-00-00-2"}
    for number in ("", "-2"):
        done = program(tmp_path, "--config-dir", "my")
        assert done.stdout == f"{tmp_path}/runs/12-00-00{number}\n", done.stderr


def test_what_hydra_cannot_write_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    done = program(tmp_path, "hydra.run.dir=taken/run")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Storage error: cannot write the run folder taken/run: Not a dir")
    assert len(done.stderr.splitlines()) == 2
    # A log that cannot be opened is Hydra's to find.
    (tmp_path / "run/program.log").mkdir(parents=True)
    done = program(tmp_path, "hydra.run.dir=run")
    assert done.returncode == 1
    assert "cannot write the run folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_options_that_came_after_a_run_and_are_off_do_not_count_as_changed() -> None:
    before = {"data": {"seed": 1, "backends": {"a": {"repeats": 0}}}}
    later = {"path": None, "seed": 1, "backends": {"a": {"repeats": 0, "flipped": False}}}
    assert run_folder._without_later({"data": later}, before) == before
    changed = {"data": {"seed": None, "path": "elsewhere", "backends": {}}}
    assert run_folder._without_later(changed, before) == changed
