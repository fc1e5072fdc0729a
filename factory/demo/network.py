"""Network of the demo's model: a small transformer on latents, times and captions."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the name torch's own documentation uses)

# Slowest and fastest wave of a position, in periods over the picture's mean edge: the slow one
# tells left from right, the fast one tells neighbouring cells of a 16-cell edge apart.
_SLOWEST, _FASTEST = 0.25, 8.0
# Slowest and fastest wave of a time, in periods over the way from picture to noise.
_TIME_WAVES = (0.25, 16.0)


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


class TransformerBlock(nn.Module):
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
        self.blocks = nn.ModuleList(TransformerBlock(hidden, heads) for _ in range(depth))
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
