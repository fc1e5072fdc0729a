"""The demo's model: a small rectified-flow transformer on latents and captions."""

import hashlib
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the name torch's own documentation uses)

from factory.demo.network import CleanNet
from factory.errors import ConfigError
from factory.lightning.datamodule import FactoryDataModule
from factory.runtime.batches.batch import Batch

# Least time a velocity is computed by division with; a tenth of the way is where little of
# the picture is left to decide.
_LEAST_TIME = 0.1
# Sizes where there is no encoder to tell them.
_USUAL_SIZES = {"channels": 16, "text_dim": 64, "pooled_dim": 64}
# Samples, frames, channels, height, width.
_CLIP_DIMS = 5


def keyed_generator(key: str) -> torch.Generator:
    """Return a CPU generator whose numbers depend on `key` alone."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    # Torch takes seeds of 63 bits without a sign.
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class RectifiedFlow(lightning.LightningModule):
    """A text-conditioned rectified flow: learns the straight way from noise to latents.

    With latents x0 and noise x1, x = (1 - t) x0 + t x1 moves with the velocity x1 - x0, which
    the loss asks for (mean squared error). The network gives x0, and the velocity (x - x0) / t
    follows. The defaults take about 0.2 s for an optimizer step of 16 latents [16, 16, 16] on
    two CPU cores.

    Each frame of a clip, [B, F, C, h, w] or [B, C, f, h, w], is learned as a picture of its own
    with the clip's caption, noised as much as the others.

    Args:
        channels: Channels C of the latents. This and the two dimensions of texts may be None:
            then they are those of the encoders of the data module that is trained on.
        patch: Edge of a token in latent cells.
        hidden: Width of the transformer, a multiple of 4 and of `heads`.
        depth: Number of blocks.
        heads: Attention heads.
        text_dim: Dimension of "embeds" of the text encoder.
        pooled_dim: Dimension of "pooled" of the text encoder (zeros where it has none).
        caption_dropout: Share of training captions hidden, 0..1, for classifier-free guidance.
        time_mean: Mean of the logit of training times; above 0 favours noisy ones.
        time_std: Deviation of the logit of training times.
        falloff: Channel c is trained at (c + 1)**-falloff of its scale, so that channels listed
            first weigh more and are decided earlier. Made for the block DCT, which lists them
            by importance; 0 treats all alike, as suits the latents of an autoencoder.
        lr: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        schedule: "cosine" (warm-up, then down to a twentieth of `lr`) or "constant" (after
            the warm-up).
        warmup_steps: Optimizer steps of linear warm-up.

    Raises:
        ConfigError: If a setting is out of range.
    """

    def __init__(
        self,
        *,
        channels: int | None = 16,
        patch: int = 2,  # noqa: ARG002 (kept by save_hyperparameters)
        hidden: int = 224,
        depth: int = 4,  # noqa: ARG002 (kept by save_hyperparameters)
        heads: int = 4,
        text_dim: int | None = 64,
        pooled_dim: int | None = 64,
        caption_dropout: float = 0.1,
        time_mean: float = 0.5,  # noqa: ARG002 (kept by save_hyperparameters)
        time_std: float = 1.0,  # noqa: ARG002 (kept by save_hyperparameters)
        falloff: float = 0.5,  # noqa: ARG002 (kept by save_hyperparameters)
        lr: float = 2e-3,  # noqa: ARG002 (kept by save_hyperparameters)
        weight_decay: float = 0.01,  # noqa: ARG002 (kept by save_hyperparameters)
        schedule: str = "cosine",
        warmup_steps: int = 20,  # noqa: ARG002 (kept by save_hyperparameters)
    ) -> None:
        """Create the network."""
        super().__init__()
        _check(hidden, heads, caption_dropout, schedule)
        self.save_hyperparameters()
        self._validated: list[Tensor] = []
        self.scale: Tensor
        self.net: CleanNet
        if None not in (channels, text_dim, pooled_dim):
            self._create()

    def configure_model(self) -> None:
        """Create the network if its sizes are those of the encoders.

        Raises:
            ConfigError: They cannot be told, or backends differ.
        """
        if hasattr(self, "net"):
            return
        data = getattr(self.trainer, "datamodule", None)
        told = sizes_of(data) if isinstance(data, FactoryDataModule) else {}
        for name, usual in _USUAL_SIZES.items():
            if self.hparams[name] is None:
                # In the checkpoint, too: it is loaded without the encoders.
                self.hparams[name] = told.get(name, usual)
        self._create()

    def _create(self) -> None:
        given = self.hparams
        names = ("channels", "patch", "hidden", "depth", "heads", "text_dim", "pooled_dim")
        scale = torch.arange(1, given["channels"] + 1).float() ** -given["falloff"]
        self.register_buffer("scale", scale[:, None, None].to(self.device), persistent=False)
        self.net = CleanNet(**{name: given[name] for name in names}).to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the velocity loss of a batch, at random times with some captions hidden."""
        latents = self._latents(batch)
        logits = torch.randn(len(latents), device=latents.device)
        drop = torch.rand(len(latents), device=latents.device) < self.hparams["caption_dropout"]
        losses = self._losses(latents, torch.randn_like(latents), logits, batch.text, drop)
        loss = losses.mean()
        self.log("train/loss", loss, batch_size=len(latents), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Log "val/loss": noise and time of a sample depend on its key alone.

        The number is therefore comparable between epochs and runs, and the same however the
        samples are split into batches; padding repeats do not count.
        """
        losses = self.keyed_losses(batch)[batch.valid]
        self._validated.append(torch.stack([losses.sum(), losses.new_tensor(len(losses))]))

    def on_validation_epoch_end(self) -> None:
        """Log the mean over the samples of all ranks.

        Not by `log(..., batch_size=..., sync_dist=True)`: Lightning averages the numbers of
        samples over ranks as whole numbers, rounding down, so that 3 and 2 samples count as 4.
        """
        if not self._validated:
            return
        told = torch.stack(self._validated).sum(dim=0)
        self._validated.clear()
        total, count = self.trainer.strategy.reduce(told, reduce_op="sum")
        self.log("val/loss", total / count, sync_dist=True, prog_bar=True)

    def keyed_losses(self, batch: Batch) -> Tensor:
        """Return each sample's loss [B] with noise and time drawn by its key."""
        latents = self._latents(batch)
        generators = [keyed_generator(key) for key in batch.keys]
        logits = torch.cat([torch.randn(1, generator=g) for g in generators])
        noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in generators])
        drop = torch.zeros(len(latents), dtype=torch.bool, device=latents.device)
        return self._losses(
            latents, noise.to(latents.device), logits.to(latents.device), batch.text, drop
        )

    def _latents(self, batch: Batch) -> Tensor:
        if batch.latents is None:
            raise ConfigError(
                f"backend {batch.backend!r} delivers no latents, which RectifiedFlow trains on; "
                "give the backend an image encoder, for example encoder=dct"
            )
        latents = batch.latents.float()
        channels = self.hparams["channels"]
        if channels not in latents.shape[1:-2]:
            raise ConfigError(
                f"backend {batch.backend!r} delivers latents {list(latents.shape)} and the model "
                f"was made for {channels} channels; set model.channels=null to take them from the "
                "encoder, and start without ckpt_path"
            )
        return latents

    def _losses(
        self, latents: Tensor, noise: Tensor, logits: Tensor, text: dict[str, Tensor], drop: Tensor
    ) -> Tensor:
        """Return the loss [B] at times sigmoid(mean + std * logits); of clips over their frames."""
        words = self._text(text, len(latents))
        frames = 1
        if latents.ndim == _CLIP_DIMS:
            latents, noise = self._frames(latents), self._frames(noise)
            frames = latents.shape[1]
            latents, noise = latents.flatten(0, 1), noise.flatten(0, 1)
        logits, drop, embeds, mask, pooled = (
            each.repeat_interleave(frames, dim=0) for each in (logits, drop, *words)
        )
        time = torch.sigmoid(self.hparams["time_mean"] + self.hparams["time_std"] * logits)
        scaled = latents * self.scale
        share = time[:, None, None, None]
        noisy = (1 - share) * scaled + share * noise
        clean = self.net(noisy, time, embeds, mask, pooled, drop)
        # The velocity's error is that of the clean latents divided by the time; near the end
        # of the way the division is limited, lest the last steps rule the loss.
        error = F.mse_loss(clean, scaled, reduction="none").mean(dim=(1, 2, 3))
        losses = error / time.clamp(min=_LEAST_TIME).square()
        each: Tensor = losses.view(-1, frames).mean(dim=1)
        return each

    def _frames(self, clips: Tensor) -> Tensor:
        """Return latents of clips as [B, F, C, h, w], whichever of F and C came first."""
        return clips if clips.shape[2] == self.hparams["channels"] else clips.transpose(1, 2)

    def _velocity(self, x: Tensor, time: Tensor, *conditions: Tensor) -> Tensor:
        """Return the velocity [B, C, h, w] towards noise at x, scaled latents.

        The network itself predicts the clean latents: what it has yet to learn then comes out
        smooth, where a predicted velocity would leave noise behind.
        """
        clean: Tensor = self.net(x, time, *conditions)
        return (x - clean) / time[:, None, None, None]

    def _text(self, text: dict[str, Tensor], count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (embeds, mask, pooled); all padding where there are no captions."""
        weight = self.net.text.weight
        embeds = text.get("embeds", weight.new_zeros(count, 1, weight.shape[1])).float()
        mask = text.get("mask", weight.new_zeros(embeds.shape[:2])).bool()
        pooled = text.get("pooled", weight.new_zeros(count, self.hparams["pooled_dim"])).float()
        return embeds, mask, pooled

    def configure_optimizers(self) -> Any:
        """Return AdamW with warm-up and, unless constant, a cosine to the end of the run."""
        decayed = [p for p in self.net.parameters() if p.ndim > 1]
        others = [p for p in self.net.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.hparams["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
        # 0.95: second moments of a run of a few hundred steps must not remember a thousand.
        optimizer = torch.optim.AdamW(groups, lr=self.hparams["lr"], betas=(0.9, 0.95))
        total = float(self.trainer.estimated_stepping_batches)
        warmup = self.hparams["warmup_steps"]
        cosine = self.hparams["schedule"] == "cosine"

        def factor(step: int) -> float:
            return learning_rate_factor(step, warmup, total if cosine else math.inf)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    @torch.no_grad()
    def sample(
        self,
        embeds: Tensor,
        mask: Tensor,
        pooled: Tensor | None = None,
        size: Sequence[int] = (16, 16),
        steps: int = 12,
        guidance: float = 1.5,
        temperature: float = 0.6,
        seed: int = 0,
    ) -> Tensor:
        """Draw latents for captions, from noise by Heun steps along the velocity.

        Args:
            embeds: Caption vectors [B, L, D].
            mask: bool [B, L], True at words.
            pooled: Whole captions [B, P], if the text encoder has them.
            size: Height and width of the latents, in cells.
            steps: Steps from noise to latents; each runs the network twice, with
                and without captions.
            guidance: How far to go from the captionless velocity to the captioned one and
                beyond; 1 follows the caption as trained.
            temperature: Deviation of the starting noise. Below 1 pictures vary less and come
                closer to the usual one for the caption, which steadies a hardly trained model.
            seed: Seed of the noise; the first rows do not change when more are drawn.

        Returns:
            Latents float32 [B, C, h, w] on the model's device.
        """
        device = self.net.null_text.device
        given = {"embeds": embeds, "mask": mask} | ({} if pooled is None else {"pooled": pooled})
        text = self._text({name: field.to(device) for name, field in given.items()}, len(embeds))
        shape = (self.hparams["channels"], *size)
        generators = [keyed_generator(f"{seed}/{row}") for row in range(len(embeds))]
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
        x = temperature * noise.to(device)
        # Steps are short where training times were dense.
        shift = math.exp(self.hparams["time_mean"])
        evenly = torch.linspace(1, 0, steps + 1)
        times = (shift * evenly / (1 + (shift - 1) * evenly)).tolist()
        for now, after in pairwise(times):
            velocity = self._guided(x, now, text, guidance)
            moved = x + (after - now) * velocity
            if after > 0:  # at the end there is nothing left to look ahead for
                velocity = (velocity + self._guided(moved, after, text, guidance)) / 2
                moved = x + (after - now) * velocity
            x = moved
        return x / self.scale

    def _guided(
        self, x: Tensor, time: float, text: tuple[Tensor, Tensor, Tensor], guidance: float
    ) -> Tensor:
        """Return the velocity with the caption's influence multiplied by `guidance`."""
        count = len(x)
        twice = [torch.cat([part, part]) for part in (x, x.new_full((count,), time), *text)]
        hidden = torch.arange(2 * count, device=x.device) >= count
        captioned, plain = self._velocity(*twice, hidden).chunk(2)
        guided: Tensor = plain + guidance * (captioned - plain)
        return guided


def sizes_of(data: FactoryDataModule) -> dict[str, int]:
    """Return the sizes of what a data module's encoders give, by the model's settings for them.

    Raises:
        ConfigError: An encoder does not tell its channels, or backends differ.
    """
    registry = data.registry
    stores = (registry.image_store(backend) for backend in registry.data.values())
    channels = {
        store.name: getattr(store.encoder, "channels", None)
        for store in stores
        if store is not None
    }
    sizes: dict[str, int] = {}
    if channels:
        known = next(iter(channels.values()))
        if known is None or set(channels.values()) != {known}:
            raise ConfigError(
                "model.channels=null takes the channels of latents from the image encoder; those "
                f"of {channels} are not one known number: set model.channels=N, and train "
                "backends of one encoder together"
            )
        sizes["channels"] = known
    if any(registry.text_store(backend) is not None for backend in registry.data.values()):
        fields = data.text_embeds([""])
        names = {"text_dim": "embeds", "pooled_dim": "pooled"}
        sizes |= {size: fields[of].shape[-1] for size, of in names.items() if of in fields}
    return sizes


def learning_rate_factor(step: int, warmup: int, total: float) -> float:
    """Return the share of the peak rate at a step: linear up, then a cosine down to 0.05.

    `total` is the length of the run in steps; with an infinite one the rate stays up.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if math.isinf(total):
        return 1.0
    done = min(1.0, (step - warmup) / max(1.0, total - warmup))
    # Never nothing, so that a run continued past its end still learns.
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def _check(hidden: int, heads: int, caption_dropout: float, schedule: str) -> None:
    """Raise one ConfigError with all settings of the model that are out of range."""
    problems = []
    if hidden % 4 or hidden % heads:
        problems.append(
            f"model.hidden is {hidden}; it must be a multiple of 4 and of model.heads ({heads})"
        )
    if not 0 <= caption_dropout <= 1:
        problems.append(f"model.caption_dropout is {caption_dropout}; allowed are 0 to 1")
    if schedule not in ("cosine", "constant"):
        problems.append(f"model.schedule is {schedule!r}; allowed are 'cosine' and 'constant'")
    if problems:
        raise ConfigError(problems)
