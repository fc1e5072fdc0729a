"""Whether a checkpoint's file is whole and trusted: named, with the next older one that is."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factory.commands.training_run import find_checkpoint
from factory.errors import ConfigError, ResumeError
from factory.lightning.checkpoint_file import (
    TRUST,
    check_trusted,
    check_whole,
    explain_failure,
    next_older,
)
from tests.scenarios.training.building import Recorder, data_module, trainer, write_folders

WEIGHTS = {"state_dict": {"w": torch.arange(5000)}, "global_step": 3}


class Foreign:
    """A class that torch does not know."""


def saved(path: Path, age: int = 0, content: object = WEIGHTS) -> Path:
    """Save a checkpoint that is so many seconds old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return aged(path, age)


def aged(path: Path, age: int) -> Path:
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


def whole_bytes(folder: Path) -> bytes:
    return saved(folder / "whole.pt").read_bytes()


def test_a_whole_checkpoint_is_taken(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt")
    check_whole(path)
    check_trusted(path)
    legacy = tmp_path / "b.ckpt"
    torch.save(WEIGHTS, legacy, _use_new_zipfile_serialization=False)
    check_whole(legacy)
    check_trusted(legacy)


def test_one_written_without_checksums_is_taken(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "a.ckpt")
    finally:
        torch.serialization.set_crc32_options(True)
    check_whole(path)


@pytest.mark.parametrize("left", [0, 1, 17, 0.5, 0.99, -30, -1])
def test_what_breaks_off_is_named_with_the_next_older_one(tmp_path: Path, left: float) -> None:
    raw = whole_bytes(tmp_path)
    broken = tmp_path / "last.ckpt"
    broken.write_bytes(raw[: int(left * len(raw)) if isinstance(left, float) else left])
    aged(broken, 0)
    older = saved(tmp_path / "older.ckpt", age=20)
    saved(tmp_path / "oldest.ckpt", age=30)
    (tmp_path / "between.ckpt").write_bytes(raw[:100])
    aged(tmp_path / "between.ckpt", 10)
    with pytest.raises(ResumeError) as caught:
        check_whole(broken)
    assert f"the checkpoint {broken} is not whole" in str(caught.value)
    assert f"ckpt_path={older}" in str(caught.value)


def test_a_newer_one_is_not_named_as_older(tmp_path: Path) -> None:
    broken = tmp_path / "a.ckpt"
    broken.write_bytes(b"")
    aged(broken, 10)
    newer = saved(tmp_path / "b.ckpt")
    with pytest.raises(ResumeError, match="no older one that is whole"):
        check_whole(broken)
    assert next_older(broken, [newer, broken]) is None


@given(st.data())
def test_no_byte_of_the_content_may_change(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    raw = bytearray(whole_bytes(folder))
    start = bytes(raw).index(WEIGHTS["state_dict"]["w"].numpy().tobytes())
    place = data.draw(st.integers(start, start + 5000 * 8 - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    path = folder / "flipped.ckpt"
    path.write_bytes(raw)
    with pytest.raises(ResumeError, match=r"data/0 is damaged"):
        check_whole(path)


def test_an_archive_of_another_kind_is_refused(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ResumeError, match=r"none of torch\.save"):
        check_whole(tmp_path / "a.ckpt")


def test_foreign_classes_are_named_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.ckpt", content={"hyper_parameters": Foreign(), "path": tmp_path})
    with pytest.raises(ResumeError) as caught:
        check_trusted(path)
    for words in (str(path), "Foreign", "add_safe_globals", "save_hyperparameters(ignore=", TRUST):
        assert words in str(caught.value)
    with torch.serialization.safe_globals([Foreign, type(tmp_path)]):
        check_trusted(path)
    monkeypatch.setenv(TRUST, "1")
    check_trusted(path)


def test_other_errors_are_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt")
    assert explain_failure(path, RuntimeError("CUDA out of memory")) is None
    assert explain_failure(path, ValueError("x")) is None
    assert explain_failure(tmp_path / "gone.ckpt", EOFError()) is None


def test_the_last_checkpoint_of_all_runs_is_looked_at(tmp_path: Path) -> None:
    whole = saved(tmp_path / "one/checkpoints/last.ckpt", age=20)
    assert find_checkpoint("last", tmp_path) == str(whole)
    broken = tmp_path / "two/checkpoints/last.ckpt"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(whole.read_bytes()[:-1])
    aged(broken, 10)
    for given_path in ("last", str(broken)):
        with pytest.raises(ResumeError, match="is not whole") as caught:
            find_checkpoint(given_path, tmp_path)
        assert str(broken) in str(caught.value)
    with pytest.raises(ResumeError) as caught:
        find_checkpoint("last", tmp_path)
    assert f"ckpt_path={whole}" in str(caught.value)
    with pytest.raises(ConfigError, match="is no file"):
        find_checkpoint(str(tmp_path / "none.ckpt"), tmp_path)


def sharded(folder: Path, age: int = 0) -> Path:
    """Write what Lightning writes with FSDP's sharded states, or ModelParallelStrategy."""
    from torch.distributed import checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is one process alone
        checkpoint.save({"w": torch.arange(50)}, checkpoint_id=folder, no_dist=True)
    saved(folder / "meta.pt", content={"global_step": 3})
    return aged(folder, age)


def test_a_folder_of_a_sharded_strategy_is_a_checkpoint(tmp_path: Path) -> None:
    path = sharded(tmp_path / "one/checkpoints/last.ckpt", age=20)
    assert find_checkpoint(str(path), tmp_path) == find_checkpoint("last", tmp_path) == str(path)
    check_trusted(path)
    deepspeed = tmp_path / "deepspeed.ckpt"
    (deepspeed / "checkpoint").mkdir(parents=True)
    assert find_checkpoint(str(deepspeed), tmp_path) == str(deepspeed)
    check_trusted(deepspeed)
    broken = tmp_path / "one/checkpoints/newer.ckpt"
    broken.write_bytes(b"PK")
    with pytest.raises(ResumeError, match=r"older one that is whole is .*last\.ckpt"):
        check_whole(broken)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / ".metadata").unlink(), r"it lacks \.metadata"),
        (lambda path: (path / "__0_0.distcp").write_bytes(b""), r"__0_0\.distcp is empty"),
        (lambda path: (path / "meta.pt").write_bytes(b"PK"), r"of its meta\.pt, its 2 bytes"),
    ],
)
def test_a_sharded_checkpoint_that_is_not_whole_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    path = sharded(tmp_path / "last.ckpt")
    damage(path)
    with pytest.raises(ResumeError, match=said):
        find_checkpoint(str(path), tmp_path)


def test_classes_in_a_sharded_checkpoint_are_looked_at(tmp_path: Path) -> None:
    path = sharded(tmp_path / "last.ckpt")
    saved(path / "meta.pt", content={"hyper_parameters": Foreign()})
    with pytest.raises(ResumeError, match="Foreign"):
        check_trusted(path)


def test_a_folder_that_is_no_checkpoint_leads_to_the_newest_one_in_it(tmp_path: Path) -> None:
    whole = saved(tmp_path / "run/checkpoints/last.ckpt")
    with pytest.raises(ConfigError, match=r"is a folder, .*ckpt_path=.*/last\.ckpt"):
        find_checkpoint(str(tmp_path / "run"), tmp_path)
    whole.unlink()
    with pytest.raises(ConfigError, match=r"is a folder, .*; give a checkpoint, or"):
        find_checkpoint(str(tmp_path / "run"), tmp_path)


@pytest.mark.parametrize("left", [0, 0.5, -1])
def test_a_trainer_of_ones_own_gets_the_same_error(tmp_path: Path, left: float) -> None:
    write_folders(tmp_path)
    raw = whole_bytes(tmp_path)
    path = tmp_path / "broken.ckpt"
    path.write_bytes(raw[: int(left * len(raw)) if isinstance(left, float) else left])
    data = data_module(tmp_path)
    with pytest.raises(ResumeError, match=r"broken\.ckpt is not whole"):
        trainer(tmp_path, max_steps=1).fit(Recorder(), datamodule=data, ckpt_path=str(path))
    data.close()


def test_a_trainer_of_ones_own_gets_advice_on_foreign_classes(tmp_path: Path) -> None:
    write_folders(tmp_path)
    path = saved(tmp_path / "foreign.ckpt", content={**WEIGHTS, "hyper_parameters": Foreign()})
    data = data_module(tmp_path)
    with pytest.raises(ResumeError, match=r"foreign\.ckpt holds objects .*add_safe_globals"):
        trainer(tmp_path, max_steps=1).fit(Recorder(), datamodule=data, ckpt_path=str(path))
    data.close()
