"""Samples that cannot be used: counted once, listed, and too many of them stop the run."""

import json
from pathlib import Path

import pytest
import torch

from factory.errors import QuarantineError
from factory.runtime.batches.batch import Batch, Replacement
from factory.runtime.batches.quarantine import Quarantine, QuarantineLimit


def batch(*rows: int, backend: str = "photos", step: int = 0) -> Batch:
    """Return a batch whose samples of these rows were replaced."""
    none = torch.zeros(0, 2, dtype=torch.int32)
    return Batch(
        backend=backend, bucket="64x64", epoch=0, step=step, global_step=step,
        rows=torch.tensor(rows), keys=[], captions=[], original_size=none, target_size=none,
        crop_top_left=none, valid=torch.ones(0, dtype=torch.bool),
        replaced=tuple(
            Replacement(place, row, f"{row}.jpg", "decode", "truncated", row + 1, f"{row + 1}.jpg")
            for place, row in enumerate(rows)
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("share", "at_least", "kept", "allowed"),
    [(0.01, 10, 100, 10), (0.01, 10, 5000, 50), (0.0, 0, 5000, 0), (1.0, 0, 7, 7), (0.5, 0, 3, 1)],
)
def test_a_limit_is_a_share_but_at_least_some(
    share: float, at_least: int, kept: int, allowed: int
) -> None:
    assert QuarantineLimit(share, at_least).allowed(kept) == allowed


def test_limits_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data.quarantine.share must be from 0 to 1, got 2"):
        QuarantineLimit(share=2)
    with pytest.raises(ValueError, match=r"data.quarantine.at_least must be at least 0, got -1"):
        QuarantineLimit(at_least=-1)


def test_one_too_many_stops_the_run_and_says_what_to_do() -> None:
    quarantine = Quarantine(QuarantineLimit(at_least=4), {"photos": 100, "art": 100})
    quarantine.note(batch(1, 2, 3))
    quarantine.note(batch(3, 2, 1, step=1))
    quarantine.note(batch(1, 2, 3, backend="art"))
    quarantine.note(batch(4))
    with pytest.raises(QuarantineError) as caught:
        quarantine.note(batch(9))
    assert str(caught.value) == (
        "backend 'photos': 5 of 100 samples cannot be used, 4 may be (data.quarantine.share=0.01, "
        "data.quarantine.at_least=4):\n"
        "  1.jpg: decode failed: truncated\n"
        "  2.jpg: decode failed: truncated\n"
        "  3.jpg: decode failed: truncated\n"
        "  and 2 more\n"
        "Mend or remove them and continue from the checkpoint, drop damaged ones at the scan by "
        "data.backends.photos.metadata.verify=true, or raise data.quarantine.share"
    )


def test_nobody_is_told_to_scan_a_stream() -> None:
    quarantine = Quarantine(QuarantineLimit(0.5, 0), {"big": 4}, streams=["big"])
    quarantine.note(batch(1, 2, backend="big"))
    with pytest.raises(QuarantineError, match="3 of 4 samples cannot be used, 2 may be") as caught:
        quarantine.note(batch(3, backend="big"))
    assert str(caught.value).endswith(
        "Mend or remove them and continue from the checkpoint, or raise data.quarantine.share"
    )


@pytest.mark.parametrize(("rank", "name"), [(0, "quarantine.jsonl"), (3, "quarantine-rank3.jsonl")])
def test_each_sample_is_listed_once_as_it_is_met(tmp_path: Path, rank: int, name: str) -> None:
    limit = QuarantineLimit(path=str(tmp_path / "run/quarantine.jsonl"))
    quarantine = Quarantine(limit, {"photos": 100}, rank)
    quarantine.note(batch(step=0))
    assert not (tmp_path / "run").exists()
    quarantine.note(batch(7, 8, step=4))
    quarantine.note(batch(8, step=5))
    lines = [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]
    assert lines[0] == {
        "backend": "photos", "global_step": 4, "place": 0, "row": 7, "key": "7.jpg",
        "stage": "decode", "reason": "truncated", "substitute": 8, "substitute_key": "8.jpg",
    }  # fmt: skip
    assert [line["key"] for line in lines] == ["7.jpg", "8.jpg"]
    assert set(quarantine.found["photos"]) == {"7.jpg", "8.jpg"}
