"""`python scripts/explain.py` on a run that `python train.py` made, as a user runs both."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from factory import build, compose
from factory.commands import explain as command
from factory.ledger.reader import read_ledger
from tests.commands.test_plan import run
from tests.reports.preview.building import CHROMIUM, browse
from tests.support.pictures import write_pictures

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


@pytest.fixture
def explain(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The script in this process: (exit status, what it prints, what it complains of)."""
    monkeypatch.chdir(place)
    monkeypatch.delenv("FACTORY_DEBUG", raising=False)
    for name in ("DATA_DIR", "SCRATCH_DIR", "OUTPUT_DIR"):
        folder = name.partition("_")[0].lower()
        monkeypatch.setenv(name, str(place / {"output": "outputs"}.get(folder, folder)))

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            command.main(arguments)
            status = 0
        except SystemExit as caught:
            status = caught.code
        assert Path.cwd() == place
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def test_a_step_of_a_run_as_a_user_asks(place: Path) -> None:
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
    if CHROMIUM is not None:
        shown, console = browse(place / "page.html", "", place / "profile")
        assert console == ""
        assert shown.count("<img") == 4
        shutil.rmtree(place / "profile", ignore_errors=True)


def test_the_line_printed_leaves_the_sample_out(place: Path, explain) -> None:
    recorded = read_ledger(place / "run/ledger")[4]
    key = sorted((place / "data/photos").glob("*.png"))[int(recorded.rows[1])].name
    status, said, _ = explain("run", f"sample=photos/{key}")
    assert status == 0
    line = next(text for text in said.splitlines() if text.startswith("'data.exclude="))
    assert line == f"'data.exclude=[{{from_step: 7, ids: [photos:photos/{key}]}}]'"
    [setting] = shlex.split(line.replace("7", "5", 1))
    data = build(compose(["data=mine", setting, "data.ledger=null"], config_dir=place / "my"))
    data.setup()
    planned = data.plan.at(*data.plan.position(4))
    assert planned.excluded[0].row == int(recorded.rows[1])
    assert (planned.rows != recorded.rows).tolist() == [False, True, False, False]
    assert key in [Path(one).name for one in data.plan.exclude["photos"].keys.values()]
    data.close()
    # The script takes the same setting, to see beforehand what would stand in.
    status, said, _ = explain("run", "step=5", setting, "data.ledger=null")
    assert status == 0
    assert "exclude: excluded from step 5 on" in said


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
def test_errors_are_advice_and_exit_with_1(explain, arguments: list[str], words: str) -> None:
    status, said, advice = explain(*arguments)
    assert status == 1
    assert words in advice
    assert "Traceback" not in advice
    assert said == ""


def test_options_that_changed_since_are_named(place: Path, explain) -> None:
    option = place / "my/data/mine.yaml"
    before = option.read_text()
    try:
        option.write_text(before + "caption:\n  prepend: sks\n")
        status, said, _ = explain("run", "sample=photos/0003.png")
    finally:
        option.write_text(before)
    assert status == 0
    changed = "an option of the run has changed since: data.caption.prepend: None -> 'sks'"
    assert changed in " ".join(said.split())
