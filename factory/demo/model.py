"""What the demonstration trains: a small rectified-flow transformer on latents and captions."""

import hashlib
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the name torch's own documentation uses)

from factory.errors import ConfigError
from factory.runtime.batch import Batch

# Slowest and fastest wave of a position, in periods over the picture's mean edge: the slow one
# tells left from right, the fast one tells neighbouring cells of a 16-cell edge apart.
_SLOWEST, _FASTEST = 0.25, 8.0
# Slowest and fastest wave of a time, in periods over the way from picture to noise.
_TIME_WAVES = (0.25, 16.0)
# Least time a velocity is computed by division with; a tenth of the way is where little of
# the picture is left to decide.
_LEAST_TIME = 0.1


def waves(values: Tensor, dim: int, lowest: float, highest: float) -> Tensor:
    """Describe numbers [...] by sines and cosines [..., dim], geometric in `lowest..highest`.

    `lowest` and `highest` are periods per unit; `dim` is even.
    """
    count = dim // 2
    steps = torch.linspace(math.log(lowest), math.log(highest), count, device=values.device)
    angles = 2 * math.pi * values[..., None] * steps.exp()
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def positions(rows: int, columns: int, dim: int, device: torch.device) -> Tensor:
    """Return position codes [rows * columns, dim] of a grid of patches.

    Coordinates are centred and measured in mean edges, so that buckets of another shape or
    resolution describe the same place of a picture alike.
    """
    edge = math.sqrt(rows * columns)
    y = (torch.arange(rows, device=device) - (rows - 1) / 2) / edge
    x = (torch.arange(columns, device=device) - (columns - 1) / 2) / edge
    codes_y = waves(y, dim // 2, _SLOWEST, _FASTEST)[:, None].expand(-1, columns, -1)
    codes_x = waves(x, dim // 2, _SLOWEST, _FASTEST)[None].expand(rows, -1, -1)
    return torch.cat([codes_y, codes_x], dim=-1).reshape(rows * columns, dim)


def _zero(*layers: nn.Linear | nn.Conv2d) -> None:
    """Let layers give nothing until they have learned something."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class Attention(nn.Module):
    """Multi-head attention of queries [B, N, D] over context [B, M, D]."""

    def __init__(self, dim: int, heads: int) -> None:
        """Create the four projections."""
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; `mask` is bool [B, M], True where the context may be looked at."""
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key_value = self.key_value(context).unflatten(-1, (2, self.heads, -1))
        key, value = key_value.permute(2, 0, 3, 1, 4)
        where = None if mask is None else mask[:, None, None, :]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=where)
        result: Tensor = self.out(out.transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    """Self-attention, cross-attention to the caption and an MLP, modulated by the condition."""

    def __init__(self, dim: int, heads: int) -> None:
        """Create the layers; the gates start at zero, so a new block passes its input on."""
        super().__init__()
        # Neighbours mix from the first step on, where attention has yet to find them.
        self.near = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norms = nn.ModuleList(
            nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6) for _ in range(2)
        )
        self.attention = Attention(dim, heads)
        self.cross = Attention(dim, heads)
        self.cross_norm = nn.LayerNorm(dim, eps=1e-6)
        # Four times the width inside, as transformers have had it from the first one on.
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.modulation = nn.Linear(dim, 6 * dim)
        _zero(self.modulation, self.cross.out)

    def forward(
        self, x: Tensor, grid: tuple[int, int], condition: Tensor, text: Tensor, mask: Tensor
    ) -> Tensor:
        """Return tokens x [B, N, D] of a grid (rows, columns) moved on.

        condition is [B, D], text [B, L, D], mask bool [B, L].
        """
        picture = x.transpose(1, 2).reshape(len(x), x.shape[2], *grid)
        x = x + self.near(picture).flatten(2).transpose(1, 2)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(
            6, dim=-1
        )
        inner = self.norms[0](x) * (1 + scale1) + shift1
        x = x + gate1 * self.attention(inner, inner)
        x = x + self.cross(self.cross_norm(x), text, mask)
        result: Tensor = x + gate2 * self.mlp(self.norms[1](x) * (1 + scale2) + shift2)
        return result


class CleanNet(nn.Module):
    """Predicts what noisy latents of any height and width were without the noise."""

    def __init__(
        self, channels: int, patch: int, hidden: int, depth: int, heads: int,
        text_dim: int, pooled_dim: int,
    ) -> None:  # fmt: skip
        """Create the layers; the last one starts at zero."""
        super().__init__()
        self.patch, self.hidden = patch, hidden
        # Patches overlap by a cell, and cells of neighbouring patches are blended at the end.
        self.embed = nn.Conv2d(channels, hidden, patch + 2, stride=patch, padding=1)
        self.time = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.text = nn.Linear(text_dim, hidden)
        self.pooled = nn.Linear(pooled_dim, hidden)
        # What stands for a dropped or absent caption.
        self.null_text = nn.Parameter(torch.zeros(text_dim))
        self.null_pooled = nn.Parameter(torch.zeros(pooled_dim))
        self.blocks = nn.ModuleList(Block(hidden, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, channels * patch * patch)
        last = nn.Conv2d(4 * channels, channels, 3, padding=1)
        self.blend = nn.Sequential(
            nn.Conv2d(2 * channels, 4 * channels, 3, padding=1), nn.SiLU(), last
        )
        _zero(self.modulation, self.out, last)

    def forward(
        self, x: Tensor, time: Tensor, embeds: Tensor, mask: Tensor, pooled: Tensor, drop: Tensor
    ) -> Tensor:
        """Predict clean latents.

        Args:
            x: Latents [B, C, h, w].
            time: How much of x is noise, [B] in 0..1.
            embeds: Caption vectors [B, L, text_dim].
            mask: bool [B, L], True where there is a word.
            pooled: Whole captions [B, pooled_dim].
            drop: bool [B], True where the caption is to be hidden.

        Returns:
            Clean latents [B, C, h, w].
        """
        height, width = x.shape[2:]
        # Edges that are no multiple of the patch are padded here and cut off again below.
        padded = F.pad(x, (0, -width % self.patch, 0, -height % self.patch))
        rows, columns = padded.shape[2] // self.patch, padded.shape[3] // self.patch
        tokens = self.embed(padded).flatten(2).transpose(1, 2)
        tokens = tokens + positions(rows, columns, self.hidden, x.device)
        words, mask, pooled = self._captions(embeds, mask, pooled, drop)
        condition = F.silu(self.time(waves(time, self.hidden, *_TIME_WAVES)) + pooled)
        for block in self.blocks:
            tokens = block(tokens, (rows, columns), condition, words, mask)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        tokens = self.out(self.norm(tokens) * (1 + scale) + shift)
        grid = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        cells = F.pixel_shuffle(grid, self.patch)
        # Of what x shows, as much as one would believe of numbers of unit variance: nearly all
        # of it towards the end of the way, where the picture is there but for details.
        share = time[:, None, None, None]
        seen = padded * (1 - share) / (share**2 + (1 - share) ** 2)
        clean: Tensor = cells + self.blend(torch.cat([cells, seen], dim=1))
        return clean[:, :, :height, :width]

    def _captions(
        self, embeds: Tensor, mask: Tensor, pooled: Tensor, drop: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project captions, and put the null caption where one is dropped or all padding."""
        drop = drop | ~mask.any(dim=1)
        embeds = torch.where(drop[:, None, None], self.null_text, embeds)
        pooled = torch.where(drop[:, None], self.null_pooled, pooled)
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        return self.text(embeds), torch.where(drop[:, None], first, mask), self.pooled(pooled)


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

    Args:
        channels: Channels C of the latents.
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
        channels: int = 16,
        patch: int = 2,
        hidden: int = 224,
        depth: int = 4,
        heads: int = 4,
        text_dim: int = 64,
        pooled_dim: int = 64,
        caption_dropout: float = 0.1,
        time_mean: float = 0.5,  # noqa: ARG002 (kept by save_hyperparameters)
        time_std: float = 1.0,  # noqa: ARG002 (kept by save_hyperparameters)
        falloff: float = 0.5,
        lr: float = 2e-3,  # noqa: ARG002 (kept by save_hyperparameters)
        weight_decay: float = 0.01,  # noqa: ARG002 (kept by save_hyperparameters)
        schedule: str = "cosine",
        warmup_steps: int = 20,  # noqa: ARG002 (kept by save_hyperparameters)
    ) -> None:
        """Create the network."""
        super().__init__()
        _check(hidden, heads, caption_dropout, schedule)
        self.save_hyperparameters()
        scale = torch.arange(1, channels + 1).float() ** -falloff
        self._validated: list[Tensor] = []
        self.scale: Tensor
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.net = CleanNet(channels, patch, hidden, depth, heads, text_dim, pooled_dim)

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
        return batch.latents.float()

    def _losses(
        self, latents: Tensor, noise: Tensor, logits: Tensor, text: dict[str, Tensor], drop: Tensor
    ) -> Tensor:
        """Return the loss [B] at times sigmoid(mean + std * logits)."""
        time = torch.sigmoid(self.hparams["time_mean"] + self.hparams["time_std"] * logits)
        scaled = latents * self.scale
        share = time[:, None, None, None]
        noisy = (1 - share) * scaled + share * noise
        embeds, mask, pooled = self._text(text, len(latents))
        clean = self.net(noisy, time, embeds, mask, pooled, drop)
        # The velocity's error is that of the clean latents divided by the time; near the end
        # of the way the division is limited, lest the last steps rule the loss.
        error = F.mse_loss(clean, scaled, reduction="none").mean(dim=(1, 2, 3))
        return error / time.clamp(min=_LEAST_TIME).square()

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
