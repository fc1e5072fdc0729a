"""Image and video encoders by autoencoders of the diffusers library."""

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch

from factory.encoder.pretrained import (
    Pretrained,
    optional_package,
    resolve_device,
    weights_identity,
)
from factory.errors import ConfigError

# A picture and a clip that every autoencoder can divide: its code is run on their outlines to
# learn the shape of latents. Edges shrink by 64 at most; 24 frames divide by 4, 6 and 8.
_OUTLINE_EDGE = 256
_OUTLINE_FRAMES = 25
# Largest level of a picture's uint8 channels, halved: pixels go to -1 ... 1.
_HALF_RANGE = 127.5
_DEFAULT_KIND = "AutoencoderKL"


class _Cells(NamedTuple):
    """What a latent cell stands for: pixels along an edge, frames, and how many numbers."""

    downscale: int
    frames: int
    channels: int


@dataclass(kw_only=True)
class DiffusersImageEncoder(Pretrained):
    """Encodes pictures with an autoencoder of the `diffusers` library.

    Latents are shifted and scaled as the model's config says (`shift_factor`,
    `scaling_factor`, or `latents_mean` and `latents_std` per channel), so that models train
    on about unit variance. Only safetensors weights are read, and no remote code is run.

    Attributes:
        model: Hub id or local folder of the autoencoder. Give this or `config`.
        kind: Class of diffusers, such as "AutoencoderKL", "AutoencoderTiny" or
            "AutoencoderDC"; None for the one the model's config names.
        config: Arguments of that class ("AutoencoderKL" if None), for a model with random
            weights drawn from `seed`: for dry runs and tests.
        subfolder: Folder of the autoencoder inside the model, such as "vae".
        revision: Branch, tag or, better, commit of a Hub id.
        variant: Which of the weights a model comes with, such as "fp16".
        dtype: Type of the latents: "float16", "bfloat16" or "float32".
        compute_dtype: Type the weights and pictures have while encoding. Some autoencoders
            overflow in "float16".
        sample: "mode" takes the middle of the predicted distribution; "sample" draws from it,
            by the picture's own content and `seed`, so that it does not matter which batch
            the picture is in.
        tiling: Encode and decode in tiles, for pictures too large for the memory.
        slicing: Encode and decode the samples of a batch one after the other, for less memory.
        device: "cpu", "cuda", ..., or "auto" for the accelerator where there is one.
        seed: Seed of "sample" and of random weights.

    Raises:
        ConfigError: If a setting is out of range.
    """

    persisted_as: ClassVar[str] = "DiffusersImageEncoder"

    ASIDE: ClassVar[frozenset[str]] = Pretrained.ASIDE | {"model", "config", "slicing"}
    # What the outline of a sample is like: no frames, for a picture.
    OUTLINE_FRAMES: ClassVar[tuple[int, ...]] = ()

    model: str | None = None
    kind: str | None = None
    config: dict[str, Any] | None = None
    subfolder: str = ""
    sample: str = "mode"
    tiling: bool = False
    slicing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if (self.model is None) == (self.config is None):
            raise ConfigError(
                f"{type(self).__name__} needs one of model (a Hub id or folder) and config "
                f"(random weights); given model={self.model!r}, config={self.config!r}"
            )
        self._one_of("sample", ("mode", "sample"))

    def _aside(self) -> frozenset[str]:
        drawn = self.sample == "sample" or self.model is None
        return self.ASIDE if drawn else self.ASIDE | {"seed"}

    def _weights(self) -> str:
        if self.model is None:
            return f"random:{json.dumps(self.config, sort_keys=True)}"
        return weights_identity(self.model, self.revision, self.subfolder)

    @property
    def downscale(self) -> int:
        """Pixels per latent cell; reads the model's config the first time, not its weights."""
        return self._cells.downscale

    @property
    def channels(self) -> int:
        """Numbers of a latent cell; reads the model's config the first time, not its weights."""
        return self._cells.channels

    def row_bytes(self, width: int, height: int) -> int:
        """Return the bytes of a picture's row; reads the model's config, not its weights."""
        cells = (width // self.downscale) * (height // self.downscale)
        return cells * self._cells.channels * self._rows_dtype.itemsize

    @cached_property
    def _cells(self) -> _Cells:
        """What a latent cell stands for, by the model's own code on outlines without numbers."""
        kind = self._kind(self._model_config)
        try:
            with torch.device("meta"), torch.no_grad():
                module = kind.from_config(self._model_config).eval()
                pixels = torch.zeros(1, 3, *self.OUTLINE_FRAMES, _OUTLINE_EDGE, _OUTLINE_EDGE)
                shape = _distribution(module.encode(pixels))[0].shape
        except Exception as error:
            raise ConfigError(
                f"{kind.__name__} cannot be used as {type(self).__name__}: asked for the shape of "
                f"its latents it says {error}; for an autoencoder of videos set "
                "encoder/image=video_autoencoder, for one of pictures encoder/image=autoencoder"
            ) from error
        frames = 1
        if self.OUTLINE_FRAMES:
            # The first frame has latents of its own; the others share theirs.
            frames = (_OUTLINE_FRAMES - 1) // (shape[2] - 1)
        return _Cells(_OUTLINE_EDGE // shape[-1], frames, shape[1])

    @cached_property
    def _model_config(self) -> dict[str, Any]:
        if self.config is not None:
            return {"_class_name": self.kind or _DEFAULT_KIND, **self.config}
        library = optional_package("diffusers", type(self).__name__)
        # Every model of the library keeps its config as this one does.
        found: dict[str, Any] = library.AutoencoderKL.load_config(
            self.model, subfolder=self.subfolder or None, revision=self.revision
        )
        return found

    def _kind(self, config: dict[str, Any]) -> Any:
        """Return the class of the autoencoder."""
        library = optional_package("diffusers", type(self).__name__)
        name = self.kind or config.get("_class_name", _DEFAULT_KIND)
        if config.get("_class_name", name) != name:
            raise ConfigError(
                f"{type(self).__name__}.kind is {name!r}, and {self.model!r} holds an "
                f"{config['_class_name']}; leave kind out, or name another model or subfolder"
            )
        kind = getattr(library, name, None)
        if not (isinstance(kind, type) and issubclass(kind, library.ModelMixin)):
            near = difflib.get_close_matches(name, (n for n in dir(library) if "Auto" in n), n=3)
            raise ConfigError(
                f"{type(self).__name__}.kind is {name!r}, which is no model of diffusers"
                + (f"; did you mean {' or '.join(near)}?" if near else "")
            )
        return kind

    def _load(self) -> Any:
        kind = self._kind(self._model_config)
        if self.config is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                module = kind(**self.config).to(self._compute)
        else:
            module = kind.from_pretrained(
                self.model, subfolder=self.subfolder or None, revision=self.revision,
                variant=self.variant, use_safetensors=True, torch_dtype=self._compute,
            )  # fmt: skip
        if self.tiling:
            module.enable_tiling()
        if self.slicing:
            module.enable_slicing()
        return module

    def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode uint8 RGB [B, H, W, 3] to {"latents": [B, C, h, w]} on the CPU.

        Raises:
            ConfigError: If H or W is no multiple of `downscale`.
            MissingExtraError: If diffusers is not installed.
        """
        return {"latents": self._encode(pixels)}

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode uint8 RGB, channels last, to latents of the rows' dtype on the CPU."""
        self._check_edges(pixels)
        module, device = self._ready(), resolve_device(self.device)
        # Channels stand before frames, height and width.
        images = pixels.to(device).movedim(-1, 1).to(self._compute) / _HALF_RANGE - 1
        with torch.no_grad():
            middle, deviation = _distribution(module.encode(images))
        latents = middle.float()
        if self.sample == "sample":
            if deviation is None:
                raise ConfigError(
                    f"{type(module).__name__} predicts no distribution to draw from; set "
                    "sample=mode"
                )
            noise = [self._noise(picture, latents.shape[1:]) for picture in pixels.cpu()]
            latents = latents + deviation.float() * torch.stack(noise).to(device)
        shift, scale = _shift_and_scale(module, latents.ndim)
        return ((latents - shift) * scale).to("cpu", self._rows_dtype)

    def _check_edges(self, pixels: torch.Tensor) -> None:
        height, width = pixels.shape[-3:-1]
        if height % self.downscale or width % self.downscale:
            raise ConfigError(
                f"{type(self).__name__} needs edges that are multiples of {self.downscale} "
                f"pixels; given pictures of {width}x{height}: set the bucket alignment to a "
                f"multiple of {self.downscale}"
            )

    def _noise(self, picture: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Draw normal numbers by the content of one sample, uint8 [..., H, W, 3]."""
        digest = hashlib.blake2b(str(self.seed).encode(), digest_size=8)
        digest.update(picture.contiguous().numpy().tobytes())
        # Torch takes seeds of 63 bits without a sign.
        seed = int.from_bytes(digest.digest(), "little") >> 1
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Turn latents [B, C, h, w] back to uint8 RGB [B, H, W, 3] on the CPU.

        Raises:
            MissingExtraError: If diffusers is not installed.
        """
        module, device = self._ready(), resolve_device(self.device)
        shift, scale = _shift_and_scale(module, latents.ndim)
        latents = latents.to(device).float() / scale + shift
        with torch.no_grad():
            images = module.decode(latents.to(self._compute)).sample
        levels: torch.Tensor = ((images.float() + 1) * _HALF_RANGE).round().clamp(0, 255)
        return levels.to("cpu", torch.uint8).movedim(1, -1).contiguous()


@dataclass(kw_only=True)
class DiffusersVideoEncoder(DiffusersImageEncoder):
    """Encodes clips whole with a video autoencoder of the `diffusers` library.

    Frames of a clip share latents: [B, F, H, W, 3] becomes [B, C, f, h, w]. Such autoencoders
    (of Wan, HunyuanVideo, LTX, CogVideoX, Mochi, ...) encode the first frame by itself, and
    each t following ones together; clips thus have t*n+1 frames. A still picture is a clip of
    one frame, and has latents [B, C, h, w].

    Attributes:
        kind: Class of diffusers, such as "AutoencoderKLWan"; None for the one the model's
            config names.

    Raises:
        ConfigError: If a setting is out of range.
    """

    persisted_as: ClassVar[str] = "DiffusersVideoEncoder"

    OUTLINE_FRAMES: ClassVar[tuple[int, ...]] = (_OUTLINE_FRAMES,)

    def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode uint8 RGB [B, H, W, 3] to {"latents": [B, C, h, w]} on the CPU.

        Raises:
            ConfigError: If H or W is no multiple of `downscale`.
            MissingExtraError: If diffusers is not installed.
        """
        return {"latents": self._encode(pixels[:, None])[:, :, 0]}

    def encode_clips(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode uint8 RGB [B, F, H, W, 3] to {"latents": [B, C, f, h, w]} on the CPU.

        Raises:
            ConfigError: If H or W is no multiple of `downscale`, or the model would leave out
                some of the frames.
            MissingExtraError: If diffusers is not installed.
        """
        frames = pixels.shape[1]
        nearest = self.nearest_frames(frames)
        if nearest != frames:
            raise ConfigError(
                f"{type(self).__name__} takes clips of {self._cells.frames}n+1 frames; given "
                f"{frames}: set the backend's frames to {nearest}"
            )
        return {"latents": self._encode(pixels)}

    def nearest_frames(self, frames: int) -> int:
        """Return the number of frames it takes that is nearest to `frames`, or that itself."""
        shared = self._cells.frames
        return max(0, round((frames - 1) / shared)) * shared + 1

    def clip_bytes(self, width: int, height: int, frames: int) -> int:
        """Return the bytes of a clip's row; reads the model's config, not its weights."""
        return self.row_bytes(width, height) * ((frames - 1) // self._cells.frames + 1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Turn latents back to uint8 RGB on the CPU.

        Args:
            latents: [B, C, h, w] of pictures or [B, C, f, h, w] of clips.

        Returns:
            [B, H, W, 3] or [B, F, H, W, 3].

        Raises:
            MissingExtraError: If diffusers is not installed.
        """
        still = latents.ndim == 4  # noqa: PLR2004 - as the shapes above say
        if still:
            return super().decode(latents[:, :, None])[:, 0]
        return super().decode(latents)


def _distribution(output: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return what an autoencoder predicts: the middle, and the deviation where it has one."""
    spread = getattr(output, "latent_dist", None)
    if spread is not None:
        return spread.mode(), getattr(spread, "std", None)
    latents = getattr(output, "latents", None)
    return (output.latent if latents is None else latents), None


def _shift_and_scale(module: Any, dims: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what to subtract from raw latents and what to multiply them by, then.

    A config gives one shift and scale, or means and deviations per channel; some models keep
    the latter with their weights. What it is silent about changes nothing.
    """
    config, device = module.config, next(module.parameters()).device
    buffers = dict(module.named_buffers())
    mean, deviation = (
        buffers.get(name, config.get(name)) for name in ("latents_mean", "latents_std")
    )
    factor = config.get("scaling_factor")
    scale = torch.tensor(1.0 if factor is None else float(factor), device=device)
    if mean is None or deviation is None:
        return torch.tensor(float(config.get("shift_factor") or 0.0), device=device), scale
    means, deviations = (
        torch.as_tensor(values, dtype=torch.float32, device=device).view(-1, *[1] * (dims - 2))
        for values in (mean, deviation)
    )
    return means, scale / deviations
