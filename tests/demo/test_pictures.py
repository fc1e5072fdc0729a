"""LossCurve and SampleGrid: PNGs that open, in the right size, however the fit ends."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from factory import (
    FactoryDataModule,
    ImageBackend,
    ImageEmbedBackend,
    TextEmbedBackend,
    Workspace,
)
from factory.catalog.captions.sources import FilenameCaptions
from factory.demo.model import RectifiedFlow
from factory.demo.pictures import DPI, LossCurve, SampleGrid, smoothed
from factory.encoder import BlockDCT, HashedText
from factory.errors import ConfigError, MissingExtraError
from factory.storage.local import LocalStorage
from tests.demo.test_model import TINY, calm, loader, make_batch, trainer
from tests.support.pictures import write_pictures

__all__ = ["calm"]


def png_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        return picture.size


def grid(folder: Path, **settings: Any) -> SampleGrid:
    return SampleGrid(BlockDCT(channels=4), folder, steps=2, **settings)


def test_both_draw_at_the_end_of_a_fit(tmp_path: Path) -> None:
    curve, samples = LossCurve(tmp_path / "made"), grid(tmp_path / "made", count=3)
    run = trainer(tmp_path, callbacks=[curve, samples], max_steps=4, val_check_interval=2)
    batches = [make_batch([0, 1]), make_batch([3, 2], (6, 4))]
    run.fit(RectifiedFlow(**TINY), loader(batches * 2), loader(batches))
    assert png_size(curve.path) == (8 * DPI, 4.5 * DPI)
    # Three cells of 2.1 inches and a margin; one row with caption and title.
    assert png_size(samples.path) == (round(6.5 * DPI), round(3.15 * DPI))
    record = curve.state_dict()
    assert [step for step, _ in record["train"]] == [1, 2, 3, 4]
    assert [step for step, _ in record["val"]] == [2, 4]
    assert not list((tmp_path / "made").glob(".*"))


def test_the_record_continues_from_a_checkpoint(tmp_path: Path) -> None:
    model, batches = RectifiedFlow(**TINY), [make_batch([0, 1])] * 4
    run = trainer(tmp_path, callbacks=[LossCurve(tmp_path)], max_steps=2)
    run.fit(model, loader(batches))
    run.save_checkpoint(tmp_path / "a.ckpt")
    curve = LossCurve(tmp_path)
    longer = trainer(tmp_path, callbacks=[curve], max_steps=4)
    longer.fit(model, loader(batches), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert [step for step, _ in curve.state_dict()["train"]] == [1, 2, 3, 4]


class Stops(RectifiedFlow):
    """Ends the fit with an error at the third batch."""

    error: BaseException = RuntimeError("broken")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == 2:
            raise self.error
        return super().training_step(batch, batch_idx)


def test_an_error_leaves_the_curve_and_no_samples(tmp_path: Path) -> None:
    curve, samples = LossCurve(tmp_path), grid(tmp_path)
    run = trainer(tmp_path, callbacks=[curve, samples], max_steps=4)
    with pytest.raises(RuntimeError, match="broken"):
        run.fit(Stops(**TINY), loader([make_batch([0, 1])] * 4))
    assert png_size(curve.path)
    assert not samples.path.exists()


def test_an_interrupt_leaves_both(tmp_path: Path) -> None:
    curve, samples = LossCurve(tmp_path), grid(tmp_path)
    run = trainer(tmp_path, callbacks=[curve, samples], max_steps=4)
    model = Stops(**TINY)
    model.error = KeyboardInterrupt()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run.fit(model, loader([make_batch([0, 1])] * 4))
    assert png_size(curve.path)
    assert png_size(samples.path)


def test_a_failure_to_draw_does_not_hide_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    curve = LossCurve(tmp_path / "file")
    run = trainer(tmp_path, callbacks=[curve], max_steps=4)
    with pytest.raises(RuntimeError, match="broken") as caught:
        run.fit(Stops(**TINY), loader([make_batch([0, 1])] * 4))
    assert any("was not drawn" in note for note in caught.value.__notes__)


def test_nothing_recorded_draws_nothing(tmp_path: Path) -> None:
    assert LossCurve(tmp_path).write() is None
    assert grid(tmp_path).write(RectifiedFlow(**TINY), 0) is None
    assert not list(tmp_path.iterdir())


def test_first_captions_are_taken_two_a_batch(tmp_path: Path) -> None:
    samples = grid(tmp_path, count=3)
    model, run = RectifiedFlow(**TINY), trainer(tmp_path)
    for batch in (make_batch([0, 0, 1, 2]), make_batch([0, 3], (6, 4)), make_batch([2])):
        samples.on_train_batch_start(run, model, batch, 0)
    wishes = samples._wishes()
    assert [(wish.caption, wish.size) for wish in wishes] == [
        ("a red house", (4, 6)), ("a blue lake", (4, 6)), ("two words", (6, 4)),
    ]  # fmt: skip
    pictures = samples._draw(model, wishes)
    assert [picture.shape for picture in pictures] == [(32, 48, 3), (32, 48, 3), (48, 32, 3)]


def test_given_captions_are_encoded_and_drawn(tmp_path: Path) -> None:
    captions = ["one", "two", "a very long caption that needs more than a single line to be shown"]
    samples = grid(tmp_path, captions=captions, text_encoder=HashedText(tokens=4, dim=8), columns=2)
    model = RectifiedFlow(**TINY)
    model.train()
    samples.on_train_batch_start(trainer(tmp_path), model, make_batch([0]), 0)
    assert samples.write(model, 1234) == samples.path
    assert png_size(samples.path) == (round(4.4 * DPI), round(5.8 * DPI))
    assert model.training


class Doubled(HashedText):
    """Gives other rows than its class does, so that they tell whose they are."""

    @property
    def fingerprint(self) -> str:
        """One of its own."""
        return f"Doubled/{super().fingerprint}"

    def encode(self, captions: Any) -> dict[str, torch.Tensor]:
        """Encode, and double."""
        fields = super().encode(captions)
        return {**fields, "embeds": 2 * fields["embeds"]}


class Keeping(RectifiedFlow):
    """Keeps the embeddings that it is asked to draw."""

    def sample(self, embeds: Any, *args: Any, **named: Any) -> torch.Tensor:
        """Keep them, then draw."""
        self.drawn = embeds
        return super().sample(embeds, *args, **named)


@pytest.mark.parametrize("prompts", [["one", "two"], ["one"]])
def test_given_captions_are_taken_from_the_default_store_if_it_has_them_all(
    tmp_path: Path, prompts: list[str]
) -> None:
    write_pictures(tmp_path / "p", 4, sizes=((96, 64),))
    storage = LocalStorage(str(tmp_path))
    place = Workspace(storage, scratch_dir=str(tmp_path / "scratch"))
    shape = {"tokens": 4, "dim": TINY["text_dim"]}
    stored, own = Doubled(**shape), HashedText(**shape)
    data = FactoryDataModule(
        [
            ImageBackend(
                name="pics", prefix="p", storage=storage, caption=FilenameCaptions(),
                resolution=64, alignment=16,
            ),
            ImageEmbedBackend(name="latents", cache=place, encoder=BlockDCT(channels=4)),
            TextEmbedBackend(name="text", cache=place, encoder=stored, prompts=prompts),
        ],
        cache=place, batch_size=2,
    )  # fmt: skip
    captions = ["two", "one"]
    samples = grid(tmp_path, captions=captions, text_encoder=own)
    run, model = trainer(tmp_path, callbacks=[samples], max_steps=1), Keeping(**TINY)
    run.fit(model, datamodule=data)
    data.close()
    assert png_size(samples.path)
    wanted = (stored if len(prompts) == 2 else own).encode(captions)["embeds"]
    assert torch.equal(model.drawn.float(), wanted.float())


def test_settings_that_cannot_work_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="text_encoder"):
        grid(tmp_path, captions=["a"])
    with pytest.raises(ConfigError) as caught:
        grid(tmp_path, count=0, columns=0)
    assert len(caught.value.problems) == 2


def test_absent_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    curve = LossCurve(tmp_path)
    curve.load_state_dict({"train": [(1, 1.0)], "val": []})
    with pytest.raises(MissingExtraError, match=r"matplotlib.*\[demo\]"):
        curve.write()


def test_smoothing_starts_in_full_and_follows() -> None:
    assert smoothed([2.0, 2.0, 2.0], 5) == pytest.approx([2.0, 2.0, 2.0])
    assert smoothed([4.0], 9) == [4.0]
    assert smoothed([1.0, 3.0], 1) == pytest.approx([1.0, 3.0])
    assert smoothed([], 3) == []
