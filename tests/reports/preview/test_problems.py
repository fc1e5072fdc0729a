"""Each problem is found, and what it proposes mends it."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from factory import EvalBackend
from factory.backends.conditioning import ConditioningBackend
from factory.backends.image import Crop
from factory.catalog.captions.sources import FilenameCaptions, TextFileCaptions
from factory.conditioning import Canny, RandomMasks
from factory.reports.preview.epochs import lay_out
from factory.reports.preview.mixture_problems import mixture_problems
from factory.reports.preview.sample_problems import better_batch
from factory.reports.preview.summary import RunLimits
from factory.sampling.active_window import ActiveWindow
from factory.sampling.mixture import Mixture
from factory.sampling.passes import PlanBackend
from factory.sampling.plan import Plan
from factory.sampling.strategies import AutoWeighting
from factory.storage.local import LocalStorage
from tests.reports.preview.building import dry_run, one_backend, problems, write
from tests.sampling.cases import backend
from tests.support.pictures import write_pictures


def proposed(fix: str, setting: str) -> float:
    """Return the value that a fix gives to a setting."""
    found = re.search(rf"{re.escape(setting)}=([\d.]*\d)", fix)
    assert found, fix
    return float(found[1])


def test_nothing_to_mend(tmp_path: Path) -> None:
    write(tmp_path, {"a": 8})
    summary = dry_run(tmp_path, one_backend(tmp_path)).summary
    assert summary.problems == ()
    assert summary.trainable


def test_a_bucket_below_a_batch(tmp_path: Path) -> None:
    write(tmp_path, {"a": 5})
    summary = dry_run(tmp_path, one_backend(tmp_path), batch_size=16).summary
    [problem] = problems(summary, "too few samples")
    assert "64x64 has 5" in problem.text
    assert "up to 3.2 times" in problem.text
    assert problem.level == "warn"
    assert "leaves out 5" in problem.fix
    assert "data/crop" not in problem.fix  # there is one shape only
    smaller = int(proposed(problem.fix, "data.batch_size"))
    assert smaller == 5
    mended = dry_run(tmp_path, one_backend(tmp_path), batch_size=smaller).summary
    assert mended.problems == ()


def test_shapes_that_may_be_merged(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 9)
    summary = dry_run(tmp_path, one_backend(tmp_path)).summary
    assert "data/crop@data.backends.a=closest" in problems(summary, "too few samples")[0].fix
    closest = one_backend(tmp_path, crop=Crop("closest", aspect_buckets=(0.6, 1.0, 1.6)))
    summary = dry_run(tmp_path, closest).summary
    assert "fewer crop.aspect_buckets" in problems(summary, "too few samples")[0].fix


def test_many_samples_that_only_fill(tmp_path: Path) -> None:
    write(tmp_path, {"a": 9})
    summary = dry_run(tmp_path, one_backend(tmp_path), batch_size=5).summary
    assert problems(summary, "repeats that fill") == []  # 1 of 10
    summary = dry_run(tmp_path, one_backend(tmp_path), batch_size=4).summary
    [problem] = problems(summary, "repeats that fill")
    assert "3 of 12 samples of a pass (25.0%)" in problem.text
    assert problem.level == "note"
    smaller = int(proposed(problem.fix, "data.batch_size"))
    assert dry_run(tmp_path, one_backend(tmp_path), batch_size=smaller).summary.problems == ()


def test_a_better_batch_is_near_and_fills_half_as_much() -> None:
    assert better_batch([9], 4) == 3
    assert better_batch([32, 16], 16) is None
    assert better_batch([17], 16) == 9
    assert better_batch([1], 2) == 1
    assert better_batch([8, 9], 3) is None  # 2 would fill 1, as 3 does


def test_what_dropping_short_batches_costs(tmp_path: Path) -> None:
    write(tmp_path, {"a": 9})
    write_pictures(tmp_path / "a", 2, sizes=[(96, 64)], first=50)
    drop = Mixture(short_batch="drop")
    summary = dry_run(tmp_path, one_backend(tmp_path), sampling=drop).summary
    [problem] = problems(summary, "leaves out")
    assert "3 of 11 samples" in problem.text
    assert "nothing comes of 1 bucket below a batch of 4 (80x48 has 2)" in problem.text
    assert "repeats do not help" in problem.fix
    smaller = int(proposed(problem.fix, "data.batch_size"))
    again = dry_run(tmp_path, one_backend(tmp_path), sampling=drop, batch_size=smaller)
    assert problems(again.summary, "nothing comes of") == []


def test_nothing_left_after_dropping_short_batches_stops_the_run(tmp_path: Path) -> None:
    write(tmp_path, {"a": 3})
    drop = Mixture(short_batch="drop")
    summary = dry_run(tmp_path, one_backend(tmp_path), sampling=drop).summary
    assert not summary.trainable
    assert summary.plan is None
    assert "no bucket" in problems(summary, "short_batch=drop leaves nothing")[0].text


@pytest.mark.parametrize(
    ("run", "found"),
    [
        (RunLimits(), 0),
        (RunLimits(ranks=2), 0),
        (RunLimits(ranks=4, micros=2), 1),
        (RunLimits(ranks=3), 1),
    ],
)
def test_ranks_that_cannot_share_a_batch(tmp_path: Path, run: RunLimits, found: int) -> None:
    write(tmp_path, {"a": 8})
    summary = dry_run(tmp_path, one_backend(tmp_path), run=run).summary
    stops = problems(summary, "cannot be shared")
    assert len(stops) == found
    assert summary.trainable == (not found)
    for stop in stops:
        larger = int(proposed(stop.fix, "data.batch_size"))
        again = dry_run(tmp_path, one_backend(tmp_path), run=run, batch_size=larger)
        assert again.summary.trainable


def test_short_batches_that_ranks_cannot_share(tmp_path: Path) -> None:
    write(tmp_path, {"a": 9})
    short = Mixture(short_batch="short")
    summary = dry_run(
        tmp_path, one_backend(tmp_path), sampling=short, run=RunLimits(ranks=2)
    ).summary
    assert [p.backend for p in problems(summary, "short batch of bucket 64x64")] == ["a"]
    assert not summary.trainable
    assert dry_run(tmp_path, one_backend(tmp_path), sampling=short).summary.trainable


def test_a_window_that_never_opens(tmp_path: Path) -> None:
    write(tmp_path, {"a": 8, "b": 8})
    late = one_backend(tmp_path, folder="b", name="b", window=ActiveWindow(start_step=90))
    summary = dry_run(tmp_path, one_backend(tmp_path), late, run=RunLimits(max_steps=50)).summary
    [problem] = problems(summary, "never takes part")
    assert (problem.backend, problem.level) == ("b", "warn")
    summary = dry_run(tmp_path, one_backend(tmp_path), late, run=RunLimits(max_steps=100)).summary
    assert problems(summary, "never takes part") == []


def test_a_run_longer_than_every_window_is_stopped(tmp_path: Path) -> None:
    write(tmp_path, {"a": 8})
    brief = one_backend(tmp_path, window=ActiveWindow(end_epoch=2))
    assert dry_run(tmp_path, brief, run=RunLimits(max_steps=4)).summary.trainable
    for run in (RunLimits(max_steps=5), RunLimits(max_epochs=3)):
        summary = dry_run(tmp_path, brief, run=run).summary
        assert not summary.trainable
        assert "no backend is active in epoch 3" in summary.problems[0].text


def test_a_backend_without_weight(tmp_path: Path) -> None:
    write(tmp_path, {"a": 8, "b": 8})
    silent = one_backend(tmp_path, folder="b", name="b", probability=0.0)
    summary = dry_run(tmp_path, one_backend(tmp_path), silent).summary
    assert [p.backend for p in problems(summary, "never drawn from")] == ["b"]


@pytest.mark.parametrize("setting", ["repeats", "probability"])
def test_a_backend_that_runs_out_early(tmp_path: Path, setting: str) -> None:
    write(tmp_path, {"a": 8, "b": 80})

    def run(**settings: Any) -> Any:
        large = one_backend(tmp_path, folder="b", name="b")
        return dry_run(tmp_path, one_backend(tmp_path, **settings), large).summary

    [problem] = problems(run(), "asks for 50.0% of the steps and gets 9.1%")
    assert problem.backend == "a"
    assert "by step 3 of 22" in problem.text or "by step 4 of 22" in problem.text
    value = proposed(problem.fix, f"data.backends.a.{setting}")
    mended = run(**{setting: int(value) if setting == "repeats" else value})
    assert problems(mended, "asks for") == []


def warnings(*sources: PlanBackend, **rule: Any) -> list[tuple[str | None, str]]:
    """What is wrong with a mixture on its own: backends, and what is said of them."""
    plan, run = Plan(sources, batch_size=1, seed=1, **rule), RunLimits(2000, None, 1, 1)
    return [(each.backend, each.text) for each in mixture_problems(plan, lay_out(plan, run), run)]


def test_only_a_backend_that_has_run_out_is_said_to_have() -> None:
    assert (
        warnings(backend("a", (1000,)), backend("b", (900,), window=ActiveWindow(end_step=100)))
        == []
    )
    pair = backend("a", (400,), probability=0.65), backend("b", (900,), probability=0.35)
    assert warnings(*pair, epoch_steps=4) == []
    assert warnings(*pair, epoch="cycle") == []
    [(name, text)] = warnings(backend("a", (4,)), backend("b", (900,)))
    assert (name, text.endswith("given all it holds by step 7 of 904")) == ("a", True)


def test_a_backend_that_every_epoch_ends_before() -> None:
    pair = backend("a", (4,)), backend("b", (900,), probability=0.1)
    [(name, text)] = warnings(*pair, epoch="first_exhausted")
    assert name == "b"
    assert "9.1% of the steps and is never drawn from: an epoch ends after 4 steps" in text
    assert warnings(*pair, epoch_steps=4) == []


def test_with_weights_by_length_a_probability_balances(tmp_path: Path) -> None:
    write(tmp_path, {"a": 8, "b": 80})
    auto = Mixture(weighting=AutoWeighting())
    eager = one_backend(tmp_path, probability=5.0)
    large = one_backend(tmp_path, folder="b", name="b")
    [problem] = problems(dry_run(tmp_path, eager, large, sampling=auto).summary, "asks for")
    assert "repeats" not in problem.fix
    value = proposed(problem.fix, "data.backends.a.probability")
    assert value == 1
    even = one_backend(tmp_path, probability=value)
    assert problems(dry_run(tmp_path, even, large, sampling=auto).summary, "asks for") == []


def test_everything_dropped_stops_the_run_and_the_rest_is_still_shown(tmp_path: Path) -> None:
    write(tmp_path, {"a": 8, "b": 8})
    none = one_backend(tmp_path, folder="b", name="b", minimum_image_size=500)
    summary = dry_run(tmp_path, one_backend(tmp_path), none).summary
    assert not summary.trainable
    [problem] = summary.problems
    assert (problem.level, problem.backend) == ("stop", "b")
    assert problem.text == "all 8 samples are dropped: 8 minimum_image_size"
    assert problem.fix == "lower data.backends.b.minimum_image_size=500"
    assert [backend.name for backend in summary.backends] == ["a"]
    assert summary.plan is not None


def test_a_folder_that_is_not_there_stops_the_run(tmp_path: Path) -> None:
    summary = dry_run(tmp_path, one_backend(tmp_path)).summary
    assert not summary.trainable
    assert (summary.backends, summary.plan) == ((), None)
    assert "prefix='a'" in summary.problems[0].text + summary.problems[0].fix


def test_captions_that_are_missing(tmp_path: Path) -> None:
    write(tmp_path, {"a": 12})
    (tmp_path / "a/0003.txt").unlink()
    summary = dry_run(tmp_path, one_backend(tmp_path, caption=TextFileCaptions())).summary
    [problem] = problems(summary, "no caption (0003.png)")
    assert problem.level == "note"
    assert "data/caption@data.backends.a" in problem.fix


@pytest.mark.parametrize(
    ("reason", "value"),
    [("maximum_aspect_ratio", 1.2), ("minimum_aspect_ratio", 0.9), ("minimum_image_size", 79.0)],
)
def test_a_filter_that_drops_many(tmp_path: Path, reason: str, value: float) -> None:
    write_pictures(tmp_path / "a", 12, sizes=[(80, 80), (144, 64), (64, 144), (70, 70)])

    def run(limit: float) -> Any:
        backend = one_backend(tmp_path, resolution=48, **{reason: limit})
        return dry_run(tmp_path, backend, batch_size=3).summary

    [problem] = problems(run(value), f"dropped: {reason}")
    assert problem.level == "warn"
    assert "3 of 12 samples (25.0%)" in problem.text
    loosened = proposed(problem.fix, f"data.backends.a.{reason}")
    assert problems(run(loosened), f"dropped: {reason}") == []


@pytest.mark.parametrize(
    ("kind", "resolution"), [("pixel_area", 128), ("pixel", 128), ("area", 0.0164)]
)
def test_samples_below_their_target(tmp_path: Path, kind: str, resolution: float) -> None:
    write_pictures(tmp_path / "a", 16, sizes=[(160, 160)])
    write_pictures(tmp_path / "a", 1, sizes=[(100, 100)], first=50)
    settings = {"resolution": resolution, "resolution_type": kind}
    summary = dry_run(tmp_path, one_backend(tmp_path, **settings)).summary
    [problem] = problems(summary, "enlarged, up to")
    assert problem.level == "note"
    assert "1 of 17 samples" in problem.text
    assert "up to 1.28 times (0050.png): 1 of 17 samples" in problem.text
    assert problem.fix.endswith("drops them")
    settings["minimum_image_size"] = proposed(problem.fix, "data.backends.a.minimum_image_size")
    mended = dry_run(tmp_path, one_backend(tmp_path, **settings)).summary
    assert problems(mended, "enlarged, up to") == []
    assert mended.backends[0].kept == 16


def test_when_all_are_too_small_the_resolution_is_to_be_lowered(tmp_path: Path) -> None:
    write(tmp_path, {"a": 8})
    summary = dry_run(tmp_path, one_backend(tmp_path, resolution=256)).summary
    assert problems(summary, "enlarged, up to")[0].fix == "lower data.backends.a.resolution=256"


def test_files_far_larger_than_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.reports.preview.sample_problems.HUGE_BYTES", 2000)
    write(tmp_path, {"a": 8})
    file = tmp_path / "a/0003.png"
    file.write_bytes(file.read_bytes() + b"\0" * 9000)  # trailing bytes are no part of a PNG
    summary = dry_run(tmp_path, one_backend(tmp_path)).summary
    [problem] = problems(summary, "times the median")
    assert "1 file" in problem.text
    assert "(0003.png 9." in problem.text


def test_copies_and_samples_both_trained_and_validated_on(tmp_path: Path) -> None:
    write(tmp_path, {"a": 8, "held": 3})
    shutil.copy2(tmp_path / "a/0001.png", tmp_path / "a/copy.png")
    shutil.copy2(tmp_path / "a/0002.png", tmp_path / "held/x.png")
    held = EvalBackend(
        name="held",
        prefix="held",
        storage=LocalStorage(str(tmp_path)),
        resolution=64,
        caption=FilenameCaptions(),
    )
    summary = dry_run(tmp_path, one_backend(tmp_path), held).summary
    [copies] = problems(summary, "holds copies")
    assert (copies.backend, copies.level) == ("a", "note")
    assert "1 sample of the size" in copies.text
    assert "(0001.png 2 times)" in copies.text
    [leak] = problems(summary, "also trained on in 'a'")
    assert (leak.backend, leak.level) == ("held", "warn")
    assert "(x.png)" in leak.text


def test_partners_are_no_problem_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, {"a": 8})
    shutil.copytree(tmp_path / "a", tmp_path / "edges")
    edges = ConditioningBackend(
        name="edges", prefix="edges", source="a", storage=LocalStorage(str(tmp_path))
    )
    summary = dry_run(tmp_path, one_backend(tmp_path, resolution=64), edges).summary
    assert summary.problems == ()
    assert [(b.name, b.kind, b.kept) for b in summary.backends] == [
        ("a", "image", 8), ("edges", "conditioning", 8),
    ]  # fmt: skip
    assert summary.backends[1].costs.epoch_requests == 8


def test_what_is_generated_has_rows_and_bytes_but_no_scan(tmp_path: Path) -> None:
    write(tmp_path, {"a": 8})
    edges = ConditioningBackend(name="edges", source="a", generate=Canny())
    masks = ConditioningBackend(
        name="masks", source="a", type="mask", generate=RandomMasks(), stored=True
    )
    made = dry_run(tmp_path, one_backend(tmp_path, resolution=64), edges, masks)
    pixels = sum(b.samples * b.width * b.height for b in made.summary.backends[0].buckets)
    told = {b.name: b for b in made.summary.backends}
    for name, stored in (("edges", 0), ("masks", pixels)):
        costs = told[name].costs
        assert (told[name].kept, told[name].bytes) == (8, 0)
        assert (costs.scan_requests, costs.latents_bytes) == (0, stored)
    assert told["edges"].costs.epoch_requests == 8
    assert made.summary.problems == ()


def test_the_gravest_come_first(tmp_path: Path) -> None:
    write(tmp_path, {"a": 9, "b": 3})
    silent = one_backend(tmp_path, folder="b", name="b", probability=0.0)
    summary = dry_run(tmp_path, one_backend(tmp_path), silent, run=RunLimits(ranks=3)).summary
    levels = [problem.level for problem in summary.problems]
    assert levels == sorted(levels, key=["stop", "warn", "note"].index)
    assert levels[0] == "stop"
