"""`python scripts/plan.py` as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from factory.commands import plan as command
from factory.reports.preview.summary import RunLimits
from tests.support.pictures import write_pictures

ROOT = Path(__file__).parent.parent.parent


def run(place: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    unset = ("AWS_", "S3_ENDPOINT_URL", "DATA_BUCKET", "FACTORY_DEBUG")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(unset)}
    environment |= {
        "DATA_DIR": str(place / "data"), "SCRATCH_DIR": str(place / "scratch"),
        "OUTPUT_DIR": str(place / "outputs"), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        env=environment, cwd=place, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, and an option of one's own that names it."""
    root = tmp_path_factory.mktemp("plan")
    write_pictures(root / "data/photos", 12)
    (root / "my/data").mkdir(parents=True)
    (root / "my/data/mine.yaml").write_text(
        "defaults: [base, backend@backends.photos: image, _self_]\n"
        "batch_size: 4\nresolution: 64\nalignment: 16\n"
    )
    return root


def test_a_run_that_can_be_trained(place: Path) -> None:
    mine = ["--config-dir", str(place / "my"), "data=mine"]
    done = run(place, "scripts/plan.py", *mine, "--html", "plan.html", "--json", "plan.json")
    assert done.returncode == 0, done.stderr
    assert "This can be trained" in done.stdout
    numbers = json.loads((place / "plan.json").read_text())
    assert numbers["trainable"]
    assert numbers["backends"][0]["kept"] == 12
    assert numbers["plan"]["run_steps"] == 300
    assert (place / "plan.html").read_text().startswith("<!DOCTYPE html>")
    assert "wrote plan.html" in done.stdout
    # Neither run folders nor logs nor tensors are left behind.
    left = {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()}
    assert {name for name in left if not name.startswith(("data/photos", "my/"))} == {
        "data/cache/catalog/photos.arrow", "data/cache/catalog/photos.parquet", "plan.html",
        "plan.json",
    }  # fmt: skip


def test_a_run_that_cannot(place: Path) -> None:
    mine = ["data=mine", "--config-dir", str(place / "my"), "--ranks", "3"]
    done = run(place, "scripts/plan.py", *mine)
    assert done.returncode == 1
    assert "cannot be shared by 3 ranks" in done.stdout
    assert "This cannot be trained" in done.stdout


def test_config_errors_come_all_at_once(place: Path) -> None:
    done = run(place, "scripts/plan.py", "data=mutli", "storage=s4", "data.batch_size=0")
    assert done.returncode == 1
    assert "Config error: 3 problems" in done.stderr
    assert "did you mean 'multi'?" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("trainer", "ranks", "expected"),
    [
        ({"max_steps": 300, "max_epochs": -1, "devices": "auto"}, None, RunLimits(300)),
        ({"max_steps": -1, "max_epochs": 2, "devices": 2, "num_nodes": 3}, None,
         RunLimits(None, 2, ranks=6)),
        ({"devices": -1, "accumulate_grad_batches": 4}, None, RunLimits(micros=4)),
        ({"devices": 2}, 8, RunLimits(ranks=8)),
    ],
)  # fmt: skip
def test_what_the_trainer_says_of_the_run(
    trainer: dict[str, object], ranks: int | None, expected: RunLimits
) -> None:
    cfg = OmegaConf.create({"trainer": trainer, "data": {"context_parallel": 1}})
    assert command.run_of(cfg, ranks) == expected
    cfg.data.context_parallel = 2
    assert command.run_of(cfg, ranks).ranks == max(expected.ranks // 2, 1)


@pytest.mark.parametrize("wrong", [["--ranks", "0"], ["--html", "/not/there/x.html"]])
def test_wrong_options_are_refused_before_anything_is_done(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command.parse(wrong)
    assert caught.value.code == 2
    assert wrong[1].strip("x.html") in capsys.readouterr().err


def test_its_own_options_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    _, rest = command.parse(["data=multi", "--help"])
    assert rest == ["data=multi", "--help"]  # Hydra shows the rest
    shown = capsys.readouterr().out
    for option in ("--html FILE", "--json FILE", "--ranks N"):
        assert option in shown
