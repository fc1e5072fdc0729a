"""Pictures of a run: its loss curve, and samples drawn from what it learned."""

import logging
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from factory.encoder.base import ImageEncoder, TextEncoder
from factory.errors import ConfigError, MissingExtraError
from factory.lightning.datamodule import FactoryDataModule
from factory.registry.registry import Registry
from factory.runtime.batches.batch import Batch
from factory.storage.atomic_write import atomic_file

logger = logging.getLogger("factory")

# 120 dots an inch: a picture of 128 pixels in a cell of 2 inches is shown at about twice its size.
DPI = 120
_CURVE_INCHES = (8.0, 4.5)
_CELL_INCHES = 2.1
_CAPTION_INCHES = 0.55
_TITLE_INCHES = 0.5
_BLUE, _ORANGE, _GREY = "#2166ac", "#d95f02", "#555555"


def _new_figure(width: float, height: float) -> Any:
    """Return a matplotlib figure in inches that draws without a screen or global state."""
    try:
        figure = import_module("matplotlib.figure").Figure
        agg = import_module("matplotlib.backends.backend_agg").FigureCanvasAgg
    except ImportError as error:
        raise MissingExtraError("matplotlib", "demo", "drawing loss curves and samples") from error
    made = figure(figsize=(width, height), dpi=DPI, facecolor="white")
    agg(made)
    return made


def _save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, so that no half picture is ever seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")


def smoothed(values: Sequence[float], span: int) -> list[float]:
    """Return the running mean of `values`, remembering about `span` of them."""
    keep = 1 - 1 / max(1, span)
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        # Divided by the weight, so that the first values count in full.
        out.append(mean / weight)
    return out


class LossCurve(lightning.Callback):
    """Records the losses a model logs and draws them when the fit ends, however it ends.

    The record is part of checkpoints, so the curve of a continued run is whole.

    Args:
        directory: Folder the PNG is written to; made if absent.
        filename: Name of the PNG, 960x540 pixels.
        train: Name the training loss is logged under.
        val: Name the validation loss is logged under.
    """

    def __init__(
        self,
        directory: str | Path,
        filename: str = "loss.png",
        train: str = "train/loss",
        val: str = "val/loss",
    ) -> None:
        """Start with nothing recorded."""
        self.directory, self.filename = Path(directory), filename
        self.train, self.val = train, val
        # (optimizer steps done, loss); tensors stay where they are until they are drawn.
        self._train_points: list[tuple[int, Any]] = []
        self._val_points: list[tuple[int, Any]] = []

    @property
    def path(self) -> Path:
        """Where the PNG is written."""
        return self.directory / self.filename

    def state_dict(self) -> dict[str, Any]:
        """Return the record as plain numbers."""
        return {"train": _floats(self._train_points), "val": _floats(self._val_points)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the record of a checkpoint."""
        self._train_points = [(int(step), float(loss)) for step, loss in state_dict["train"]]
        self._val_points = [(int(step), float(loss)) for step, loss in state_dict["val"]]

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Record the training loss of a batch."""
        loss = trainer.callback_metrics.get(self.train)
        if loss is not None:
            self._train_points.append((trainer.global_step, loss.detach()))

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Record the validation loss, unless it is the check before training."""
        loss = trainer.callback_metrics.get(self.val)
        if loss is not None and not trainer.sanity_checking:
            self._val_points.append((trainer.global_step, loss.detach()))

    def on_fit_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Draw the curve."""
        if trainer.is_global_zero:
            self.write()

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,  # noqa: ARG002
        exception: BaseException,
    ) -> None:
        """Draw what there is; a failure to draw is noted on the error that ended the fit."""
        try:
            self.on_fit_end(trainer)
        except Exception as error:  # noqa: BLE001 (the error that ended the fit is the one to see)
            exception.add_note(f"{self.path} was not drawn: {error}")

    def write(self) -> Path | None:
        """Draw the record so far; return the PNG's path, or None while nothing is recorded.

        Raises:
            MissingExtraError: If matplotlib is not installed.
        """
        train, val = _floats(self._train_points), _floats(self._val_points)
        if not train and not val:
            return None
        figure = _new_figure(*_CURVE_INCHES)
        axes = figure.add_subplot()
        if train:
            steps, losses = zip(*train, strict=True)
            axes.plot(steps, losses, color=_BLUE, alpha=0.25, linewidth=0.8)
            # A twentieth of the run: smooth enough to read, short enough to follow the fall.
            mean = smoothed(losses, len(losses) // 20)
            axes.plot(steps, mean, color=_BLUE, linewidth=2, label=f"train, {mean[-1]:.3f}")
        if val:
            steps, losses = zip(*val, strict=True)
            label = f"validation, {losses[-1]:.3f}"
            axes.plot(steps, losses, "o-", color=_ORANGE, markersize=5, linewidth=1.5, label=label)
        _dress(axes)
        figure.tight_layout()
        _save(figure, self.path)
        return self.path


def _floats(points: list[tuple[int, Any]]) -> list[tuple[int, float]]:
    return [(step, float(loss)) for step, loss in points]


def _dress(axes: Any) -> None:
    """Give a plot of losses its labels, and take away what is not data."""
    axes.set_xlabel("optimizer step", color=_GREY)
    axes.set_ylabel("loss (velocity, mean squared error)", color=_GREY)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    axes.tick_params(colors=_GREY)
    axes.legend(frameon=False, loc="upper right")


@dataclass
class _Wish:
    """One picture to draw.

    Attributes:
        caption: What it is to show.
        size: Height and width of its latents, in cells.
        text: One row of each field of the text encoder.
    """

    caption: str
    size: tuple[int, int]
    text: dict[str, Tensor]


class SampleGrid(lightning.Callback):
    """Draws pictures for captions when the fit ends, or is stopped with Ctrl-C.

    Captions come with their embeddings from the first training batches, at most two new ones
    from each, so that subjects and shapes vary; or are given. Those given are looked for in the
    default store of the trainer's data module, and encoded by `text_encoder` if it lacks one.
    The model needs a method `sample(embeds, mask, pooled, size, steps, guidance, temperature,
    seed)`; for one without nothing is drawn.

    Args:
        encoder: Decodes the latents; the one the training pictures were encoded with.
        directory: Folder the PNG is written to; made if absent.
        filename: Name of the PNG.
        captions: Captions to draw, or None to take those of the first training batches.
        text_encoder: Encodes given captions that no store has; needed with `captions` only.
        count: Number of pictures, where no captions are given.
        columns: Pictures in a row.
        steps: Steps of the sampler.
        guidance: Strength of the caption; 1 as trained, more exaggerates.
        temperature: Deviation of the starting noise; below 1 steadies a hardly trained model.
        seed: Seed of the noise.

    Raises:
        ConfigError: If captions are given without a text encoder, or a number is below 1.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        directory: str | Path,
        *,
        filename: str = "samples.png",
        captions: Sequence[str] | None = None,
        text_encoder: TextEncoder | None = None,
        count: int = 8,
        columns: int = 4,
        steps: int = 12,
        guidance: float = 1.5,
        temperature: float = 0.6,
        seed: int = 0,
    ) -> None:
        """Start with no caption seen."""
        if captions is not None and text_encoder is None:
            raise ConfigError(
                "SampleGrid.captions are given without SampleGrid.text_encoder to encode them; "
                "give both, or leave captions empty to take those of the first batches"
            )
        numbers = {"count": count, "columns": columns, "steps": steps}
        if problems := [
            f"SampleGrid.{k} is {v}; allowed are 1 and more" for k, v in numbers.items() if v < 1
        ]:
            raise ConfigError(problems)
        self.encoder, self.text_encoder = encoder, text_encoder
        self.directory, self.filename = Path(directory), filename
        self.captions = None if captions is None else list(captions)
        self.count, self.columns = count, columns
        self.settings = {
            "steps": steps, "guidance": guidance, "temperature": temperature, "seed": seed,
        }  # fmt: skip
        self._seen: dict[str, _Wish] = {}
        self._sizes: dict[tuple[int, int], None] = {}

    @property
    def path(self) -> Path:
        """Where the PNG is written."""
        return self.directory / self.filename

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,  # noqa: ARG002
        pl_module: lightning.LightningModule,  # noqa: ARG002
        batch: Batch,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Take note of up to two new captions of the batch, while some are wanted."""
        if batch.latents is None or len(self._seen) >= self.count:
            return
        height, width = batch.latents.shape[-2:]
        self._sizes.setdefault((height, width))
        rows = {text: row for row, text in enumerate(batch.captions) if text not in self._seen}
        wanted = min(2, self.count - len(self._seen))
        for caption, row in list(rows.items())[:wanted]:
            text = {name: field[row : row + 1].cpu() for name, field in batch.text.items()}
            self._seen[caption] = _Wish(caption, (height, width), text)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw the pictures, if the model can."""
        if not callable(getattr(pl_module, "sample", None)):
            logger.info(
                "no pictures are drawn: %s has no method sample(); ~callbacks.samples leaves "
                "this out", type(pl_module).__name__,
            )  # fmt: skip
        elif trainer.is_global_zero:
            data = getattr(trainer, "datamodule", None)
            registry = data.registry if isinstance(data, FactoryDataModule) else None
            self.write(pl_module, trainer.global_step, registry)

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        """Draw what was learned by the time of a Ctrl-C; after an error there is no telling."""
        if not isinstance(exception, KeyboardInterrupt) or trainer.global_step == 0:
            return
        try:
            self.on_fit_end(trainer, pl_module)
        except Exception as error:  # noqa: BLE001 (the interrupt is the one to see)
            exception.add_note(f"{self.path} was not drawn: {error}")

    def write(self, model: Any, step: int, registry: Registry | None = None) -> Path | None:
        """Draw the pictures with `model`; return the PNG's path, or None without a caption.

        Args:
            model: What draws; see the class.
            step: Optimizer steps that the title tells.
            registry: Whose default store of texts may have the captions given.

        Raises:
            MissingExtraError: If matplotlib is not installed.
        """
        wishes = self._wishes(registry)
        if not wishes:
            return None
        was_training = model.training
        model.eval()
        try:
            pictures = self._draw(model, wishes)
        finally:
            model.train(was_training)
        title = f"drawn after {step:,} optimizer steps (guidance {self.settings['guidance']:g})"
        figure = _grid([wish.caption for wish in wishes], pictures, self.columns, title)
        _save(figure, self.path)
        return self.path

    def _wishes(self, registry: Registry | None = None) -> list[_Wish]:
        """Return what to draw: the given captions in the shapes seen, or those seen."""
        if self.captions is None or self.text_encoder is None:
            return list(self._seen.values())
        sizes = list(self._sizes)
        if not sizes or not self.captions:
            return []
        text = None if registry is None else registry.kept_texts(self.captions)
        text = text or self.text_encoder.encode(self.captions)
        return [
            _Wish(
                caption,
                sizes[row % len(sizes)],
                {name: field[row : row + 1] for name, field in text.items()},
            )
            for row, caption in enumerate(self.captions)
        ]

    def _draw(self, model: Any, wishes: list[_Wish]) -> list[Any]:
        """Return a uint8 array [H, W, 3] for each wish, drawing those of one size together."""
        pictures: list[Any] = [None] * len(wishes)
        for size in dict.fromkeys(wish.size for wish in wishes):
            rows = [row for row, wish in enumerate(wishes) if wish.size == size]
            fields = wishes[rows[0]].text
            text = {name: torch.cat([wishes[row].text[name] for row in rows]) for name in fields}
            latents = model.sample(
                text.get("embeds"), text.get("mask"), text.get("pooled"), size=size,
                **self.settings,
            )  # fmt: skip
            for row, picture in zip(rows, self.encoder.decode(latents).cpu(), strict=True):
                pictures[row] = picture.numpy()
        return pictures


def _grid(captions: list[str], pictures: list[Any], columns: int, title: str) -> Any:
    """Return a figure of pictures in their own shapes, a caption under each."""
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    cell = _CELL_INCHES + _CAPTION_INCHES
    width, height = columns * _CELL_INCHES + 0.2, rows * cell + _TITLE_INCHES
    figure = _new_figure(width, height)
    figure.text(0.5, 1 - _TITLE_INCHES / 2 / height, title, ha="center", va="center", color=_GREY)
    for place, (caption, picture) in enumerate(zip(captions, pictures, strict=True)):
        row, column = divmod(place, columns)
        left = 0.15 + column * _CELL_INCHES
        bottom = height - _TITLE_INCHES - row * cell - _CELL_INCHES
        edge = _CELL_INCHES - 0.1
        axes = figure.add_axes(
            (left / width, bottom / height, edge / width, edge / height), anchor="S"
        )
        axes.imshow(picture, interpolation="bicubic")
        axes.set_axis_off()
        # 26 letters of 8 points are as wide as a cell; three lines fit below it.
        lines = textwrap.wrap(caption, 26, max_lines=3, placeholder=" …")
        figure.text(
            (left + edge / 2) / width, (bottom - 0.05) / height, "\n".join(lines),
            ha="center", va="top", fontsize=8, color="#222222",
        )  # fmt: skip
    return figure
