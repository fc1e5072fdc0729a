"""`python train.py` as a user runs it: real processes, real data, real servers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent.parent.parent
QUICK = ("experiment=quick",)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One place for all runs of this module, so that the data is written once."""
    return tmp_path_factory.mktemp("train")


def train(place: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    unset = ("AWS_", "S3_ENDPOINT_URL", "DATA_BUCKET", "FACTORY_DEBUG")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(unset)}
    environment |= {
        "HOME": str(place),  # no credentials file of the machine's owner
        "DATA_DIR": str(place / "data"),
        "SCRATCH_DIR": str(place / "scratch"),
        "OUTPUT_DIR": str(place / "outputs"),
        **variables,
    }
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        env=environment, cwd=place, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip


@pytest.fixture(scope="module")
def first(place: Path) -> subprocess.CompletedProcess[str]:
    """A first run, whose outputs lie apart so that it is the newest one there."""
    return train(place, *QUICK, OUTPUT_DIR=str(place / "first"))


def run_folder(output: str) -> Path:
    found = re.search(r"Results are in (\S+)", output.replace("\n", " "))
    assert found, output
    return Path(found[1])


def test_one_folder_to_checkpoint_curve_and_pictures(
    first: subprocess.CompletedProcess[str],
) -> None:
    assert first.returncode == 0, first.stderr
    folder = run_folder(first.stdout)
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    for name in ("loss.png", "samples.png"):
        with Image.open(folder / name) as picture:
            assert picture.width >= 400
    stages = json.loads((folder / "metrics.json").read_text())["stages"]
    encoded = [s["counts"]["encoded"] for s in stages if s["name"] == "encode photos"]
    assert sum(encoded) > 100
    assert (stages[-1]["name"], stages[-1]["counts"]["steps"]) == ("train", 4)
    assert all(stage["peak_rss_mb"] > 0 for stage in stages)
    for words in ("Backends", "1 truncated (truncated.jpg)", "Mixture of epoch 1", "fingerprint"):
        assert words in first.stdout


def test_a_run_continues_where_the_newest_one_stopped(
    place: Path, first: subprocess.CompletedProcess[str]
) -> None:
    outputs = str(run_folder(first.stdout).parent.parent)
    done = train(place, *QUICK, "trainer.max_steps=6", "ckpt_path=last", OUTPUT_DIR=outputs)
    assert done.returncode == 0, done.stderr
    stages = json.loads((run_folder(done.stdout) / "metrics.json").read_text())["stages"]
    assert stages[-1]["counts"]["steps"] == 6
    counts = {stage["name"]: stage["counts"] for stage in stages}
    assert counts["encode photos"]["encoded"] == 0


def test_a_changed_mixture_is_refused_on_resume(
    place: Path, first: subprocess.CompletedProcess[str]
) -> None:
    outputs = str(run_folder(first.stdout).parent.parent)
    more = ("data.batch_size=8", "trainer.max_steps=6", "ckpt_path=last")
    done = train(place, *QUICK, *more, OUTPUT_DIR=outputs)
    assert done.returncode == 1
    assert "the checkpoint belongs to another plan" in done.stderr
    assert "batch_size" in done.stderr
    assert "data.accept_changed_plan=true" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long  # the same over S3 is usual
def test_four_kinds_of_backends_in_one_run(place: Path) -> None:
    done = train(place, *QUICK, "data=multi")
    assert done.returncode == 0, done.stderr
    for name in ("photos", "table", "web", "hub", "holdout"):
        assert re.search(rf"│ {name} ", done.stdout), done.stdout
    assert "web: 2 not readable" in done.stdout


def test_the_same_from_s3_with_nothing_configured(place: Path) -> None:
    done = train(place, *QUICK, "data=multi", "storage=s3")
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "no S3 is configured" in line]
    assert len(told) == 1
    assert "set DATA_BUCKET, S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID" in told[0]
    assert "S3 demo/photos" in done.stdout
    for name in ("photos", "table", "web", "hub", "holdout"):
        assert re.search(rf"│ {name} ", done.stdout), done.stdout
    assert "web: 2 not readable" in done.stdout


def test_a_sweep_runs_each_job(place: Path) -> None:
    done = train(place, "-m", *QUICK, "sampling=uniform,auto", "trainer.max_steps=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Mixture of epoch 1") == 2


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        pytest.param({"DATA_BUCKET": "b"}, "AWS_ACCESS_KEY_ID", marks=pytest.mark.long),
        pytest.param(
            {"S3_ENDPOINT_URL": "http://127.0.0.1:9"},
            "bucket is not set; set DATA_BUCKET",
            marks=pytest.mark.long,
        ),
        (
            {
                "S3_ENDPOINT_URL": "http://127.0.0.1:9",
                "DATA_BUCKET": "b",
                "AWS_ACCESS_KEY_ID": "a",
                "AWS_SECRET_ACCESS_KEY": "hush-hush",
            },
            "storage.endpoint_url",
        ),
    ],
)
def test_half_configured_s3_says_which_setting(
    place: Path, setting: dict[str, str], told: str
) -> None:
    done = train(place, *QUICK, "storage=s3", **setting)
    assert done.returncode == 1
    assert told in done.stderr
    assert "no S3 is configured" not in done.stderr
    assert "hush-hush" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_help_lists_groups_options_and_units(place: Path) -> None:
    done = train(place, "--help", AWS_SECRET_ACCESS_KEY="hush-hush")
    assert done.returncode == 0, done.stderr
    assert "data: base, multi, picked, single" in done.stdout
    assert "samples per optimizer step, over all ranks and" in done.stdout
    assert "largest download accepted, MiB" in done.stdout
    assert "hush-hush" not in done.stdout


def test_cfg_job_prints_the_composed_config_without_secrets(place: Path) -> None:
    done = train(place, "--cfg", "job", "storage=s3", AWS_SECRET_ACCESS_KEY="hush-hush")
    assert "storage: ${storage}" in done.stdout
    assert "hush-hush" not in done.stdout


def test_shell_completion_offers_options(place: Path) -> None:
    code = "import sys; sys.argv = ['train.py', '-sc', 'query=bash']; import runpy; "
    code += f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "COMP_LINE": "python train.py storage=", "COMP_POINT": "24"},
        timeout=500,
    )  # fmt: skip
    assert {"storage=local", "storage=s3"} <= set(done.stdout.split()), done.stderr
