"""`bench.py regress`: ratios below the baseline fail by name, and only when they are so twice."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BASELINE = {"plan": {"bench": "plan", "ratio": 0.5, "why": "numpy"}}


@pytest.fixture
def regress(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield importlib.import_module("benches.regress")
    for name in [name for name in sys.modules if name.split(".")[0] == "benches"]:
        del sys.modules[name]


def quick(regress: ModuleType, name: str, *turns: tuple[float, float]) -> Any:
    """Return a measurement whose turns take so many seconds: of the floor, and of the work."""
    return regress.Quick(name, iter(turns).__next__)


def gives(*ratios: float) -> Callable[[Any], float]:
    """Return what measures these ratios, one after the other, and no further one."""
    left = iter(ratios)
    return lambda _: next(left)


def run_bench(*options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "scripts/bench.py", *options],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_ratio_at_the_limit_passes_and_is_measured_once(regress: ModuleType) -> None:
    one = quick(regress, "plan")
    assert regress.judge("plan", one, BASELINE, gives(0.4)) == ([0.4], None)


def test_a_ratio_that_is_low_once_passes(regress: ModuleType) -> None:
    one = quick(regress, "plan")
    assert regress.judge("plan", one, BASELINE, gives(0.1, 0.45)) == ([0.1, 0.45], None)


def test_a_ratio_that_is_low_twice_fails_and_says_what_to_run(regress: ModuleType) -> None:
    one = quick(regress, "plan")
    ratios, problem = regress.judge("plan", one, BASELINE, gives(0.31, 0.39))
    assert ratios == [0.31, 0.39]
    for said in (
        "plan: 0.310 of its floor, then 0.390",
        "baseline is 0.500",
        "limit 0.400",
        "bench.py plan --help",
        "regress --only plan --write-baseline",
    ):
        assert said in problem


def test_a_ratio_without_a_baseline_is_named(regress: ModuleType) -> None:
    _, problem = regress.judge("fetcher", quick(regress, "fetcher_wall"), BASELINE, gives(0.9))
    assert "fetcher_wall: 0.900 of its floor, and no baseline" in problem
    assert "regress --only fetcher --write-baseline" in problem


def test_a_baseline_that_nothing_measures_is_named(regress: ModuleType) -> None:
    assert regress.stale(BASELINE, ["plan"]) == []
    (problem,) = regress.stale(BASELINE, ["scan"])
    assert "plan: in the baseline, but there is no benchmark plan" in problem


def test_the_first_turn_is_not_counted_and_the_rest_give_their_median(regress: ModuleType) -> None:
    turns = [(0.0, 1.0), (1.0, 2.0), (3.0, 4.0), (2.0, 2.0)]
    regress.SHORT_TURNS = len(turns) - 1
    assert regress.measure(quick(regress, "plan", *turns), short=True) == 0.75


def test_the_lower_quartile_is_kept(regress: ModuleType) -> None:
    assert regress.lower_quartile([0.5, 0.1, 0.4, 0.2, 0.3]) == 0.2
    assert regress.lower_quartile([0.7]) == 0.7


def test_every_ratio_of_the_committed_baseline_has_its_reason(regress: ModuleType) -> None:
    baseline = json.loads(regress.BASELINE.read_text())
    assert {entry["bench"] for entry in baseline.values()} == set(regress.watched())
    assert [name for name, entry in baseline.items() if entry["why"] == regress.NO_REASON] == []


def test_writing_a_baseline_keeps_reasons_and_what_was_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    before = {
        "plan": {"bench": "plan", "ratio": 99.0, "why": "numpy"},
        "scan": {"bench": "scan", "ratio": 0.25, "why": "headers"},
    }
    path.write_text(json.dumps(before))
    mine = ["regress", "--only", "plan", "--baseline", str(path)]
    done = run_bench(*mine, "--write-baseline", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    after = json.loads(path.read_text())
    assert after["scan"] == before["scan"]
    assert after["plan"]["why"] == "numpy"
    assert 0 < after["plan"]["ratio"] < 99
    assert after["plan_ready"]["bench"] == "plan"


def test_a_run_below_its_baseline_ends_with_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    low, fine = {"ratio": 99.0, "why": "none"}, {"ratio": 1e-9, "why": "none"}
    path.write_text(json.dumps({"plan": {"bench": "plan", **low},
                                "plan_ready": {"bench": "plan", **fine}}))  # fmt: skip
    done = run_bench("regress", "--short", "--only", "plan", "--baseline", str(path))
    assert done.returncode == 1
    assert "plan: " in done.stderr
    assert "baseline is 99.000, the limit 79.200" in done.stderr
    assert "plan_ready" not in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["conditions"]["measured"] for line in lines] == [2, 1]


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    done = run_bench("regress", "--only", "plam")
    assert done.returncode == 1
    assert "plam: no benchmark of this name has a quick form; these have: cached, " in done.stderr


def test_frames_from_the_iterator_to_a_gathered_tensor_are_seen() -> None:
    done = run_bench("frames", "32")
    assert done.returncode == 0, done.stderr
    copying, waiting = [
        json.loads(line)["conditions"]["frames"] for line in done.stdout.split("\n")[:2]
    ]
    assert copying[-1].startswith("cache/gather/")
    assert waiting[0].startswith("lightning/loaders:")


@pytest.mark.long
@pytest.mark.timeout(1800)  # seconds: 25 turns of each, and of what is low again
def test_nothing_is_slower_than_the_baseline() -> None:
    done = run_bench("regress")
    assert done.returncode == 0, done.stderr
