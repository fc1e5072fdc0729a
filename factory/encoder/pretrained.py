"""How pictures and captions are encoded with pretrained models, loaded at their first use."""

import gc
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from factory.encoder.dct import FLOAT_DTYPES, float_dtype
from factory.errors import ConfigError, MissingExtraError

# Weight files up to this size enter the fingerprint whole; of larger ones as many bytes, in
# evenly spread blocks: a fine-tune changes nearly every weight, and reading 10 GB at every
# start to learn that nothing changed would take longer than loading them.
_WHOLE_BYTES = 64 * 2**20
_BLOCK_BYTES = 16 * 2**10


def _package(name: str, purpose: str) -> Any:
    """Import an optional package, or name the extra that brings it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(name, "models", purpose) from error


def resolve_device(device: str) -> torch.device:
    """Return the torch device called `device`; "auto" is the accelerator, where there is one."""
    if device != "auto":
        return torch.device(device)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


@lru_cache(maxsize=1024)
def _content(path: str, size: int, modified_ns: int) -> bytes:  # noqa: ARG001 (part of the key)
    """Return a digest of a file's bytes, or of blocks spread over a large file."""
    digest = hashlib.blake2b(digest_size=16)
    with Path(path).open("rb") as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
        else:
            blocks = _WHOLE_BYTES // _BLOCK_BYTES
            for block in range(blocks):
                file.seek((size - _BLOCK_BYTES) * block // (blocks - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.digest()


def weights_identity(model: str, revision: str | None, *subfolders: str) -> str:
    """Name the weights behind `model`.

    A local folder is named by what its config, tokenizer and safetensors files hold (those in
    `subfolders`, where given), wherever it lies; a Hub id by itself and its revision. Without
    a revision that is "main", which can move: pin a commit to keep cache and weights in step.
    """
    folder = Path(model)
    if not folder.is_dir():
        return f"{model}@{revision or 'main'}"
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted({path for name in subfolders or ("",) for path in _files(folder / name)}):
        facts = path.stat()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{facts.st_size}\0".encode())
        digest.update(_content(str(path), facts.st_size, facts.st_mtime_ns))
    return f"local:{digest.hexdigest()}"


def _files(folder: Path) -> list[Path]:
    """Return the files of a model's own folder that shape what it gives."""
    kinds = {".json", ".safetensors", ".txt", ".model"}  # .model: a SentencePiece tokenizer
    return [path for path in folder.glob("*") if path.suffix in kinds]


@dataclass(kw_only=True)
class _Pretrained:
    """Settings and life cycle shared by encoders that load weights.

    Loading and releasing are guarded by a lock; the loaded model neither takes part in
    comparison nor travels when pickled.
    """

    dtype: str = "float16"
    compute_dtype: str = "float32"
    device: str = "cpu"
    revision: str | None = None
    _loaded: Any = field(default=None, init=False, repr=False, compare=False)
    _lock: threading.RLock = field(
        default_factory=threading.RLock, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        owner = type(self).__name__
        float_dtype(self.dtype, owner)
        if self.compute_dtype not in FLOAT_DTYPES:
            raise ConfigError(
                f"{owner}.compute_dtype is {self.compute_dtype!r}; "
                f"allowed are {', '.join(map(repr, FLOAT_DTYPES))}"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave the loaded weights and the lock behind."""
        return self.__dict__ | {"_loaded": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start unloaded, with a lock of its own."""
        self.__dict__.update(state, _lock=threading.RLock())

    def _load(self) -> Any:
        raise NotImplementedError

    def _ready(self) -> Any:
        """Return what `_load` gave, calling it the first time only."""
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def _placed(self, module: Any) -> Any:
        """Return a module ready to encode: on the device, in the compute dtype, frozen."""
        module.requires_grad_(False)
        return module.eval().to(resolve_device(self.device), FLOAT_DTYPES[self.compute_dtype])

    def release(self) -> None:
        """Free weights and device memory; the next call loads them again."""
        with self._lock:
            self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(kw_only=True)
class AutoencoderKLEncoder(_Pretrained):
    """Encodes pictures with a variational autoencoder of the `diffusers` library.

    Latents are shifted and scaled as the model's config says (`shift_factor`,
    `scaling_factor`, or `latents_mean` and `latents_std` per channel), so that models train
    on about unit variance. Only safetensors weights are read, and no remote code is run.

    Attributes:
        model: Hub id or local folder of the autoencoder. Give this or `config`.
        config: Arguments of `diffusers.AutoencoderKL`, for a model with random weights drawn
            from `seed`: for dry runs and tests.
        subfolder: Folder of the autoencoder inside the model, such as "vae".
        revision: Branch, tag or, better, commit of a Hub id.
        dtype: Type of the latents: "float16", "bfloat16" or "float32".
        compute_dtype: Type the weights and pictures have while encoding. Some autoencoders
            overflow in "float16".
        sample: "mode" takes the middle of the predicted distribution; "sample" draws from it,
            by the picture's own content and `seed`, so that it does not matter which batch
            the picture is in.
        tiling: Encode and decode in tiles, for pictures too large for the memory.
        device: "cpu", "cuda", ..., or "auto" for the accelerator where there is one.
        seed: Seed of "sample" and of random weights.

    Raises:
        ConfigError: If a setting is out of range.
    """

    model: str | None = None
    config: dict[str, Any] | None = None
    subfolder: str = ""
    sample: str = "mode"
    tiling: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if (self.model is None) == (self.config is None):
            raise ConfigError(
                "AutoencoderKLEncoder needs one of model (a Hub id or folder) and config "
                f"(random weights); given model={self.model!r}, config={self.config!r}"
            )
        if self.sample not in ("mode", "sample"):
            raise ConfigError(
                f"AutoencoderKLEncoder.sample is {self.sample!r}; allowed are 'mode', 'sample'"
            )

    @property
    def fingerprint(self) -> str:
        """Class, version, weights and every setting that shapes latents."""
        if self.model is None:
            weights = f"random:{sorted((self.config or {}).items())}"
        else:
            weights = weights_identity(self.model, self.revision, self.subfolder)
        drawn = self.sample == "sample" or self.model is None
        return (
            f"AutoencoderKLEncoder/1({weights},subfolder={self.subfolder},dtype={self.dtype},"
            f"compute_dtype={self.compute_dtype},sample={self.sample},tiling={self.tiling}"
            f"{f',seed={self.seed}' if drawn else ''})"
        )

    @property
    def downscale(self) -> int:
        """Pixels per latent cell; reads the model's config the first time, not its weights."""
        blocks: int = 2 ** (len(self._model_config()["block_out_channels"]) - 1)
        return blocks

    def row_bytes(self, width: int, height: int) -> int:
        """Return the bytes of a picture's row; reads the model's config, not its weights."""
        cells = (width // self.downscale) * (height // self.downscale)
        # What diffusers.AutoencoderKL defaults to, where the config is silent.
        channels: int = self._model_config().get("latent_channels", 4)
        return cells * channels * FLOAT_DTYPES[self.dtype].itemsize

    def _model_config(self) -> dict[str, Any]:
        vae = _package("diffusers", "AutoencoderKLEncoder").AutoencoderKL
        if self.config is not None:
            # What the class defaults to, where the config is silent.
            return {"block_out_channels": (64,)} | self.config
        found: dict[str, Any] = vae.load_config(
            self.model, subfolder=self.subfolder or None, revision=self.revision
        )
        return found

    def _load(self) -> Any:
        vae = _package("diffusers", "AutoencoderKLEncoder").AutoencoderKL
        if self.config is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                module = vae(**self.config)
        else:
            module = vae.from_pretrained(
                self.model, subfolder=self.subfolder or None, revision=self.revision,
                use_safetensors=True,
            )  # fmt: skip
        if self.tiling:
            module.enable_tiling()
        return self._placed(module)

    def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode uint8 RGB [B, H, W, 3] to {"latents": [B, C, h, w]} on the CPU.

        Raises:
            ConfigError: If H or W is no multiple of `downscale`.
            MissingExtraError: If diffusers is not installed.
        """
        self._check(pixels)
        module = self._ready()
        device, compute = resolve_device(self.device), FLOAT_DTYPES[self.compute_dtype]
        images = pixels.to(device).permute(0, 3, 1, 2).to(compute) / 127.5 - 1
        with torch.no_grad():
            spread = module.encode(images).latent_dist
        latents = spread.mode().float()
        if self.sample == "sample":
            noise = [self._noise(picture, latents.shape[1:]) for picture in pixels.cpu()]
            latents = latents + spread.std.float() * torch.stack(noise).to(device)
        shift, scale = _shift_and_scale(module.config, device)
        return {"latents": ((latents - shift) * scale).to("cpu", FLOAT_DTYPES[self.dtype])}

    def _check(self, pixels: torch.Tensor) -> None:
        height, width = pixels.shape[1:3]
        if height % self.downscale or width % self.downscale:
            raise ConfigError(
                f"AutoencoderKLEncoder needs edges that are multiples of {self.downscale} pixels; "
                f"given pictures of {width}x{height}: set the bucket alignment to a multiple of "
                f"{self.downscale}"
            )

    def _noise(self, picture: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Draw normal numbers by the content of one picture, uint8 [H, W, 3]."""
        digest = hashlib.blake2b(str(self.seed).encode(), digest_size=8)
        digest.update(picture.numpy().tobytes())
        # Torch takes seeds of 63 bits without a sign.
        seed = int.from_bytes(digest.digest(), "little") >> 1
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Turn latents [B, C, h, w] back to uint8 RGB [B, H, W, 3] on the CPU.

        Raises:
            MissingExtraError: If diffusers is not installed.
        """
        module = self._ready()
        device = resolve_device(self.device)
        shift, scale = _shift_and_scale(module.config, device)
        latents = latents.to(device).float() / scale + shift
        with torch.no_grad():
            images = module.decode(latents.to(FLOAT_DTYPES[self.compute_dtype])).sample
        levels: torch.Tensor = ((images.float() + 1) * 127.5).round().clamp(0, 255)
        return levels.to("cpu", torch.uint8).permute(0, 2, 3, 1).contiguous()


def _shift_and_scale(config: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what to subtract from raw latents and what to multiply them by, then.

    A config gives either one shift and scale, or also means and deviations per channel.
    """
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    scale = torch.tensor(float(config["scaling_factor"]), device=device)
    if mean is not None and deviation is not None:
        means, deviations = (
            torch.tensor(list(values), device=device)[:, None, None] for values in (mean, deviation)
        )
        return means, scale / deviations
    return torch.tensor(float(config.get("shift_factor") or 0.0), device=device), scale


@dataclass(kw_only=True)
class TransformersTextEncoder(_Pretrained):
    """Encodes captions with a text model of the `transformers` library (T5, CLIP, BERT, ...).

    Rows are padded or cut to `max_length` tokens. Only safetensors weights are read, and no
    remote code is run.

    Attributes:
        model: Hub id or local folder of the text model.
        revision: Branch, tag or, better, commit of a Hub id.
        max_length: Tokens L of every row.
        subfolder: Folder of the text model inside `model`, such as "text_encoder".
        tokenizer_subfolder: Folder of the tokenizer inside `model`, such as "tokenizer".
        dtype: Type of embeds and pooled: "float16", "bfloat16" or "float32".
        compute_dtype: Type the weights have while encoding.
        device: "cpu", "cuda", ..., or "auto" for the accelerator where there is one.

    Raises:
        ConfigError: If a setting is out of range.
    """

    model: str
    max_length: int = 77
    subfolder: str = ""
    tokenizer_subfolder: str = ""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.max_length < 1:
            raise ConfigError(
                f"TransformersTextEncoder.max_length is {self.max_length}; allowed are 1 and more"
            )

    @property
    def fingerprint(self) -> str:
        """Class, version, weights and every setting that shapes embeddings."""
        weights = weights_identity(
            self.model, self.revision, self.subfolder, self.tokenizer_subfolder
        )
        return (
            f"TransformersTextEncoder/1({weights},"
            f"subfolder={self.subfolder},tokenizer={self.tokenizer_subfolder},"
            f"max_length={self.max_length},dtype={self.dtype},compute_dtype={self.compute_dtype})"
        )

    def _load(self) -> tuple[Any, Any]:
        transformers = _package("transformers", "TransformersTextEncoder")
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            self.model, revision=self.revision, subfolder=self.tokenizer_subfolder
        )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        where = {"revision": self.revision, "subfolder": self.subfolder}
        config = transformers.AutoConfig.from_pretrained(self.model, **where)
        # An encoder-decoder such as T5 has a class for its encoder alone.
        text_only = type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING
        kind = transformers.AutoModelForTextEncoding if text_only else transformers.AutoModel
        module = kind.from_pretrained(self.model, use_safetensors=True, **where)
        # A model of pictures and text, such as CLIP, keeps its text half under this name.
        return tokenizer, self._placed(getattr(module, "text_model", module))

    def encode(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Encode captions to rows of equal shape, on the CPU.

        Returns:
            "embeds" [B, L, D], the last hidden state; "mask" bool [B, L], True at tokens of
            the caption; and "pooled" [B, D] where the model has a pooled output.

        Raises:
            MissingExtraError: If transformers is not installed.
        """
        tokenizer, module = self._ready()
        tokens = tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self.max_length,
            return_tensors="pt",
        )  # fmt: skip
        device = resolve_device(self.device)
        mask = tokens["attention_mask"].to(device)
        with torch.no_grad():
            output = module(input_ids=tokens["input_ids"].to(device), attention_mask=mask)
        dtype = FLOAT_DTYPES[self.dtype]
        fields = {"embeds": output.last_hidden_state.to("cpu", dtype), "mask": mask.cpu().bool()}
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None:
            fields["pooled"] = pooled.to("cpu", dtype)
        return fields
