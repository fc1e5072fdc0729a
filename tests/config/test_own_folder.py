"""Every run has a folder of its own, whatever begins beside it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from factory.config import own_folder
from factory.config.own_folder import claim
from factory.errors import ConfigError, StorageError

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
    monkeypatch.setattr(own_folder, "_LOCKED", [])
    yield
    for descriptor in own_folder._LOCKED:
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
    os.close(own_folder._LOCKED.pop())
    (tmp_path / "a/.hydra").mkdir()  # that run ended before its first step
    claim(config(tmp_path / "a", named), "run")
    with pytest.raises(ConfigError, match="another run is writing into"):
        claim(config(tmp_path / "a", named), "run")
    os.close(own_folder._LOCKED.pop())
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
        env={**environment, "PYTHONPATH": str(ROOT)}, check=False, timeout=60,
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
