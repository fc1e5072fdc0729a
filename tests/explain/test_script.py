"""`python scripts/explain.py` on a run that `python train.py` made, as a user runs both."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from factory.ledger.reader import read_ledger
from tests.dryrun.building import CHROMIUM, browse
from tests.dryrun.test_plan_script import run
from tests.pictures import write_pictures

OFF = ("~callbacks.loss", "~callbacks.samples")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, an option of one's own that names it, and a run of six steps."""
    root = tmp_path_factory.mktemp("explained")
    write_pictures(root / "data/photos", 14)
    (root / "my/data").mkdir(parents=True)
    (root / "my/data/mine.yaml").write_text(
        "defaults: [base, backend@backends.photos: image, _self_]\n"
        "batch_size: 4\nresolution: 64\nalignment: 16\n"
    )
    made = run(
        root, "train.py", "--config-dir", "my", "data=mine", "trainer.max_steps=6",
        "trainer.accumulate_grad_batches=2", "callbacks.checkpoint.every_n_train_steps=3", *OFF,
        f"hydra.run.dir={root}/run",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return root


def test_a_step_of_a_run_and_the_line_that_leaves_its_samples_out(place: Path) -> None:
    files = ["--html", "page.html", "--json", "answer.json"]
    done = run(place, "scripts/explain.py", "run", "step=5", *files)
    assert done.returncode == 0, done.stderr
    assert "Step 5: step 5 of" in done.stdout
    assert "used by 1 process, 2 micro-batches each" in done.stdout
    answer = json.loads((place / "answer.json").read_text())
    [step] = answer["steps"]
    recorded = read_ledger(place / "run/ledger")[4]
    assert [sample["row"] for sample in step["samples"]] == recorded.rows.tolist()
    assert answer["notes"] == []
    line = next(text for text in done.stdout.splitlines() if text.startswith("'data.exclude="))
    # The line is a setting of train.py, and here of this script, which shows what it would do.
    again = run(
        place, "scripts/explain.py", "run", "step=5", *shlex.split(line.replace(", photos", "|", 1)
        .split("|")[0] + "]}]'"), "--json", "answer.json",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "the plan is not the one that the ledger was written with" in again.stdout
    if CHROMIUM is not None:
        shown, console = browse(place / "page.html", "", place / "profile")
        assert console == ""
        assert shown.count("<img") == 4
        shutil.rmtree(place / "profile", ignore_errors=True)


def test_the_pasted_line_works_in_a_run(place: Path) -> None:
    recorded = read_ledger(place / "run/ledger")
    key = sorted((place / "data/photos").glob("*.png"))[int(recorded[4].rows[1])].name
    made = run(
        place, "train.py", "--config-dir", "my", "data=mine", "trainer.max_steps=6", *OFF,
        f"hydra.run.dir={place}/other",
        f"data.exclude=[{{from_step: 5, ids: [photos:photos/{key}]}}]",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    other = read_ledger(place / "other/ledger")
    for step in range(6):
        same = recorded[step].rows == other[step].rows
        assert (~same).tolist() == [
            step >= 4 and row == recorded[4].rows[1] for row in recorded[step].rows
        ]
    told = run(place, "scripts/explain.py", "other", "step=5")
    assert re.search(r"exclude: excluded from step 5", told.stdout), told.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "step=7"], "the run has the steps 1 to 6, got step=7"),
        (["run", "step=0"], "steps count from 1"),
        (["run"], "ask for one of step=12"),
        (["data", "step=1"], "is no run folder"),
        (["run", "step=1", "data.batch_siz=3"], "did you mean 'batch_size'?"),
    ],
)
def test_errors_are_advice_and_exit_with_1(place: Path, arguments: list[str], words: str) -> None:
    done = run(place, "scripts/explain.py", *arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_options_that_changed_since_are_named(place: Path) -> None:
    option = place / "my/data/mine.yaml"
    before = option.read_text()
    try:
        option.write_text(before + "caption:\n  prepend: sks\n")
        done = run(place, "scripts/explain.py", "run", "sample=photos/0003.png")
    finally:
        option.write_text(before)
    assert done.returncode == 0, done.stderr
    assert "an option of the run has changed since: data.caption.prepend: None -> 'sks'" in (
        " ".join(done.stdout.split())
    )
