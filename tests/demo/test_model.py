"""RectifiedFlow: learns, validates reproducibly, samples, and leaves safe checkpoints."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from factory.demo.model import RectifiedFlow, keyed_generator, learning_rate_factor
from factory.encoder import HashedText
from factory.errors import ConfigError
from factory.runtime.batches.batch import Batch

TINY: dict[str, Any] = {
    "channels": 4, "hidden": 32, "depth": 2, "heads": 2, "text_dim": 8, "pooled_dim": 8, "lr": 5e-3,
}  # fmt: skip
CAPTIONS = ["a red house", "a blue lake", "", "two words"]


def make_batch(rows: list[int], size: tuple[int, int] = (4, 6), text: bool = True) -> Batch:
    """Return samples whose latents follow from their numbers alone."""
    captions = [CAPTIONS[row % len(CAPTIONS)] for row in rows]
    latents = [torch.randn(4, *size, generator=keyed_generator(f"latent {row}")) for row in rows]
    zeros = torch.zeros(len(rows), 2, dtype=torch.int32)
    return Batch(
        backend="tiny", bucket="48x32", epoch=0, step=0, global_step=0, rows=torch.tensor(rows),
        keys=[f"{row}.png" for row in rows], captions=captions,
        original_size=zeros, target_size=zeros, crop_top_left=zeros,
        valid=torch.ones(len(rows), dtype=torch.bool),
        latents=torch.stack(latents).half(),
        text=HashedText(tokens=4, dim=8).encode(captions) if text else {},
    )  # fmt: skip


def loader(batches: list[Batch]) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def trainer(folder: Path, **settings: Any) -> lightning.Trainer:
    quiet = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    return lightning.Trainer(
        default_root_dir=folder, accelerator="cpu", **({"max_steps": 4} | quiet | settings)
    )


@pytest.fixture(autouse=True)
def calm() -> Iterator[None]:
    """Silence advice that does not fit lists of ready batches, and Lightning on newer torch."""
    import warnings

    with warnings.catch_warnings():
        for text in (
            "does not have many workers",
            "have no `val_dataloader`",
            "LeafSpec",
            "dataloader is not resumable",
        ):
            warnings.filterwarnings("ignore", message=f".*{text}.*")
        lightning.seed_everything(0, verbose=False)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # threads cost more than they give on models this small
        yield
        torch.set_num_threads(threads)


def test_loss_falls_on_a_few_samples(tmp_path: Path) -> None:
    model = RectifiedFlow(**TINY, warmup_steps=3)
    batch = make_batch([0, 1, 2, 3])
    before = model.keyed_losses(batch).mean().item()
    run = trainer(tmp_path, max_steps=80)
    run.fit(model, loader([batch] * 80))
    assert run.global_step == 80
    assert model.keyed_losses(batch).mean().item() < 0.5 * before


def test_training_is_repeatable(tmp_path: Path) -> None:
    weights = []
    for _ in range(2):
        lightning.seed_everything(3, verbose=False)
        model = RectifiedFlow(**TINY)
        trainer(tmp_path).fit(model, loader([make_batch([0, 1])] * 4))
        weights.append(model.net.out.weight.detach().clone())
    assert torch.equal(*weights)
    assert weights[0].any()


def validated(folder: Path, model: RectifiedFlow, batches: list[Batch]) -> float:
    found = trainer(folder).validate(model, loader(batches), verbose=False)
    return float(found[0]["val/loss"])


def test_validation_does_not_depend_on_the_split(tmp_path: Path) -> None:
    model = RectifiedFlow(**TINY)
    torch.nn.init.normal_(model.net.out.weight, std=0.1)
    whole = validated(tmp_path, model, [make_batch([0, 1, 2, 3, 4])])
    split = validated(tmp_path, model, [make_batch([3, 0]), make_batch([4]), make_batch([2, 1])])
    assert whole == pytest.approx(split, rel=1e-5)
    assert whole == pytest.approx(model.keyed_losses(make_batch(list(range(5)))).mean().item())
    assert whole != pytest.approx(validated(tmp_path, model, [make_batch([5, 6])]), rel=1e-3)


def test_validation_leaves_padding_out(tmp_path: Path) -> None:
    model = RectifiedFlow(**TINY)
    padded, all_padding = make_batch([0, 1, 2]), make_batch([3])
    padded.valid[2] = False
    all_padding.valid[:] = False
    found = validated(tmp_path, model, [padded, all_padding])
    assert found == pytest.approx(validated(tmp_path, model, [make_batch([0, 1])]), rel=1e-5)


def test_checkpoint_holds_plain_values_only(tmp_path: Path) -> None:
    model = RectifiedFlow(**TINY)
    run = trainer(tmp_path)
    run.fit(model, loader([make_batch([0, 1])] * 4))
    path = tmp_path / "run.ckpt"
    run.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    assert saved["hyper_parameters"]["hidden"] == 32
    loaded = RectifiedFlow.load_from_checkpoint(path, weights_only=True)
    batch = make_batch([0, 1])
    assert torch.equal(loaded.keyed_losses(batch), model.keyed_losses(batch))
    longer = trainer(tmp_path, max_steps=6)
    longer.fit(RectifiedFlow(**TINY), loader([batch] * 6), ckpt_path=path, weights_only=True)
    assert longer.global_step == 6


@pytest.mark.parametrize("size", [(4, 4), (6, 4), (3, 5), (1, 7)])
def test_any_height_and_width(size: tuple[int, int]) -> None:
    model = RectifiedFlow(**TINY)
    batch = make_batch([0, 1, 2], size)
    assert model.keyed_losses(batch).shape == (3,)
    sampled = model.sample(batch.text["embeds"], batch.text["mask"], size=size, steps=2)
    assert sampled.shape == (3, 4, *size)
    assert sampled.dtype == torch.float32
    assert sampled.isfinite().all()


def test_samples_depend_on_seed_and_not_on_company() -> None:
    model = RectifiedFlow(**TINY)
    torch.nn.init.normal_(model.net.out.weight, std=0.1)
    text = make_batch([0, 1, 3]).text
    three = model.sample(**text, size=(4, 4), steps=3, seed=1)
    two = model.sample(**{n: f[:2] for n, f in text.items()}, size=(4, 4), steps=3, seed=1)
    torch.testing.assert_close(three[:2], two)
    assert not torch.allclose(three, model.sample(**text, size=(4, 4), steps=3, seed=2))


def test_words_matter_and_padding_does_not() -> None:
    model = RectifiedFlow(**TINY)
    for block in model.net.blocks:
        torch.nn.init.normal_(block.cross.out.weight, std=0.2)
    torch.nn.init.normal_(model.net.out.weight, std=0.2)
    batch = make_batch([0, 1])
    before = model.keyed_losses(batch)
    batch.text["embeds"][~batch.text["mask"]] = 9.0
    assert torch.equal(model.keyed_losses(batch), before)
    batch.text["embeds"][:, 0] += 1.0
    assert not torch.allclose(model.keyed_losses(batch), before)


def test_hidden_and_absent_captions_are_alike() -> None:
    model = RectifiedFlow(**TINY)
    torch.nn.init.normal_(model.net.null_pooled)
    torch.nn.init.normal_(model.net.out.weight, std=0.2)
    torch.nn.init.normal_(model.net.modulation.weight, std=0.2)
    without = model.keyed_losses(make_batch([0, 1], text=False))
    masked = make_batch([0, 1])
    masked.text["mask"][:] = False
    torch.testing.assert_close(without, model.keyed_losses(masked))
    assert not torch.allclose(without, model.keyed_losses(make_batch([0, 1])))


def test_a_batch_without_latents_says_what_to_do() -> None:
    batch = make_batch([0])
    batch.latents = None
    with pytest.raises(ConfigError, match=r"'tiny' delivers no latents.*encoder"):
        RectifiedFlow(**TINY).keyed_losses(batch)


def test_settings_out_of_range_are_named_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        RectifiedFlow(hidden=30, heads=4, caption_dropout=1.5, schedule="linear")
    assert len(caught.value.problems) == 3


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate_factor(step, 10, 100) for step in range(130)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == rates[-1] == pytest.approx(0.05)
    assert learning_rate_factor(10**6, 10, float("inf")) == 1


def test_a_run_without_an_end_keeps_its_rate(tmp_path: Path) -> None:
    model = RectifiedFlow(**TINY, schedule="constant", warmup_steps=0)
    run = trainer(tmp_path, max_steps=3)
    run.fit(model, loader([make_batch([0])] * 3))
    assert run.optimizers[0].param_groups[0]["lr"] == TINY["lr"]


def clip_batch(clips: torch.Tensor) -> Batch:
    """Return two clips of given latents with the captions of a batch of pictures."""
    return replace(make_batch([0, 1]), latents=clips)


def test_frames_of_clips_are_learned_as_pictures(tmp_path: Path) -> None:
    model = RectifiedFlow(**TINY)
    trainer(tmp_path).fit(model, loader([make_batch([0, 1])] * 4))
    still = make_batch([0, 1]).latents
    assert still is not None
    # Clips of one frame are pictures, whichever of frames and channels comes first.
    expected = model.keyed_losses(make_batch([0, 1]))
    for clips in (still[:, None], still[:, :, None]):
        assert torch.allclose(model.keyed_losses(clip_batch(clips)), expected, atol=1e-6)
    three = torch.randn(2, 3, 4, 4, 6)
    losses = model.keyed_losses(clip_batch(three))
    assert losses.shape == (2,)
    assert losses.isfinite().all()
    trainer(tmp_path).fit(RectifiedFlow(**TINY), loader([clip_batch(three)] * 4))


def test_latents_of_other_channels_are_refused_with_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"made for 4 channels; set model\.channels=null"):
        RectifiedFlow(**TINY).keyed_losses(clip_batch(torch.randn(2, 5, 4, 6)))


def test_sizes_left_open_are_the_usual_ones_without_encoders(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"channels": None, "text_dim": None, "pooled_dim": None}
    model = RectifiedFlow(**{**TINY, **sizes})
    trainer(tmp_path).fit(
        model, loader([replace(make_batch([0, 1]), text={}, latents=torch.randn(2, 16, 4, 4))] * 2)
    )
    assert (model.hparams["channels"], model.hparams["text_dim"]) == (16, 64)
