"""Runs that cannot work are refused with the mend, before anything is scanned or encoded."""

from math import isfinite, nan
from pathlib import Path

import pytest

from factory import compose
from factory.commands.training_run import train
from factory.config.build import build
from factory.errors import ConfigError
from factory.registry.reopen import check_shared
from factory.reports.preview.dry_run import preview_run
from factory.reports.preview.summary import RunLimits
from tests.support.clips import write_clips
from tests.support.pictures import write_pictures

CLIPS = "+data.backends.clips={kind:video,prefix:clips,frames:4}"

# Lightning's advice about runs without validation, which these are on purpose.
pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a .validation_step."),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*have no .val_dataloader."),
]


def overrides(folder: Path, *more: str) -> list[str]:
    """Return the overrides of a run on a folder's data, without the demo's pictures."""
    return [
        "data=base", f"storage.root={folder}", f"paths.output_dir={folder}/outputs",
        f"paths.data_dir={folder}", "data.batch_size=4", "data.resolution=64",
        "data.alignment=16", "trainer.max_steps=1", "~callbacks",
        "+model.hidden=16", "+model.depth=1", "+model.heads=2", "trainer.accelerator=cpu", *more,
    ]  # fmt: skip


def loss(folder: Path, *more: str) -> float:
    """Train one step; return its loss, nan where none was logged."""
    given = overrides(folder, *more)
    found = train(compose(given), given, folder / "run")
    return nan if found is None else found


def test_clips_are_trained_on_by_the_demo_model(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", 4, 13)
    assert isfinite(loss(tmp_path, CLIPS))


def test_the_model_takes_its_channels_from_an_autoencoder(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    kind = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    kind.save_pretrained(tmp_path / "vae")
    write_pictures(tmp_path / "p", 4)
    model = f"encoder.image.model={tmp_path}/vae"
    given = "+data.backends.p={kind:image,prefix:p}"
    own = ("encoder/image=autoencoder_kl", model, "encoder.image.device=cpu")
    assert isfinite(loss(tmp_path, given, *own))


def test_a_cache_in_memory_is_refused_for_several_processes(tmp_path: Path) -> None:
    given = overrides(tmp_path, "+data.backends.p={kind:image,prefix:p}", "storage@cache=memory")
    data = build(compose(given), given)
    check_shared(data.registry, 1)
    with pytest.raises(ConfigError, match=r"2 processes: cache\.storage is .*storage@cache=local"):
        check_shared(data.registry, 2)
    problems = preview_run(data, RunLimits(ranks=2)).summary.problems
    assert any(problem.level == "stop" and "2 processes" in problem.text for problem in problems)
    data.close()


def test_no_checkpoint_to_continue_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ckpt_path=last: no run below \S+ left a checkpoint"):
        loss(tmp_path, "+data.backends.p={kind:image,prefix:p}", "ckpt_path=last")


def test_an_accelerator_that_is_not_there_comes_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"accelerator=mps.*trainer\.accelerator=auto"):
        loss(tmp_path, "+data.backends.p={kind:image,prefix:p}", "trainer.accelerator=mps")
