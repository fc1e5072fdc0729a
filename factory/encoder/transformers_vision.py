"""Vision encoders by models of the transformers library."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch.nn.functional import interpolate

from factory.encoder.pretrained import (
    optional_package,
    resolve_device,
    weights_identity,
)
from factory.encoder.transformers_model import TransformersModel, hidden_layer, pooled_vector
from factory.errors import ConfigError

# What CLIP was trained with, and most that follow it: taken where a model does not say.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_LEVELS = 255.0
_RESIZES = (None, "crop", "stretch")


class _Preparation(NamedTuple):
    """How a model wants its pictures: edge in px, "crop" or "stretch", and colours."""

    edge: int
    resize: str
    mean: Sequence[float]
    std: Sequence[float]


@dataclass(kw_only=True)
class TransformersVisionEncoder(TransformersModel):
    """Encodes pictures with a vision model of the `transformers` library.

    CLIP, SigLIP, DINOv2 and others that take one square picture. A picture is prepared as the
    model's `preprocessor_config.json` says: resized to its edge (bicubic, smoothed), and its
    colours normalised. Only safetensors weights are read, and no remote code is run.

    Attributes:
        model: Hub id or local folder of the model.
        kind: Class of transformers, such as "CLIPVisionModelWithProjection"; None for the
            vision half of the model, without a projection.
        subfolder: Folder of the model inside `model`, such as "image_encoder".
        processor_subfolder: Folder of the preprocessor's config inside `model`, such as
            "feature_extractor"; None for `subfolder`.
        revision: Branch, tag or, better, commit of a Hub id.
        variant: Which of the weights a model comes with, such as "fp16".
        edge: Edge of the square pictures are resized to, px; None for the model's own.
        resize: "crop" resizes the short edge and cuts the middle, "stretch" resizes both; None
            for the model's own.
        layer: Layer that "embeds" are of: -1 is the last one, -2 the one before it, and so on.
        final_norm: Give an earlier layer the norm that follows the last one.
        pooled: Where "pooled" comes from: "auto" (the projection or pooler's output, where the
            model has one), "none", "projection", "pooler", or the "first", "last" or "mean" of
            the layer's tokens.
        dtype: Type of embeds and pooled: "float16", "bfloat16" or "float32".
        compute_dtype: Type the weights and pictures have while encoding.
        device: "cpu", "cuda", ..., or "auto" for the accelerator where there is one.

    Raises:
        ConfigError: If a setting is out of range.
    """

    persisted_as: ClassVar[str] = "TransformersVisionEncoder"

    processor_subfolder: str | None = None
    edge: int | None = None
    resize: str | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        self._one_of("resize", _RESIZES)
        if self.edge is not None and self.edge < 1:
            owner = type(self).__name__
            raise ConfigError(f"{owner}.edge is {self.edge}; allowed are 1 and more pixels")

    def _weights(self) -> str:
        return weights_identity(self.model, self.revision, self.subfolder, self._processor_folder)

    @property
    def _processor_folder(self) -> str:
        return self.subfolder if self.processor_subfolder is None else self.processor_subfolder

    @cached_property
    def _config(self) -> Any:
        """The config of the model's vision half."""
        return getattr(self._model_config, "vision_config", self._model_config)

    @cached_property
    def _preparation(self) -> _Preparation:
        """How the model wants its pictures, by its own files where the settings are silent."""
        optional_package("transformers", type(self).__name__)
        from transformers.image_processing_base import ImageProcessingMixin

        try:
            processor, _ = ImageProcessingMixin.get_image_processor_dict(
                self.model, revision=self.revision, subfolder=self._processor_folder
            )
        except OSError:  # some models come without; their config tells the edge
            processor = {}
        size = processor.get("size", self._config.image_size)
        # "shortest_edge" asks for the middle of the picture; height and width for all of it.
        cropped = isinstance(size, dict) and "shortest_edge" in size
        own: Any = processor.get("crop_size", size) if cropped else size
        if isinstance(own, dict):
            own = own["height"] if "height" in own else own["shortest_edge"]
        cropped = cropped or processor.get("do_center_crop", not processor)
        return _Preparation(
            own if self.edge is None else self.edge,
            self.resize or ("crop" if cropped else "stretch"),
            processor.get("image_mean", _CLIP_MEAN),
            processor.get("image_std", _CLIP_STD),
        )

    def row_bytes(self) -> int:
        """Return the bytes of a row; reads the model's config, not its weights.

        A pooled vector is counted unless `pooled` is "none", though some models have none.

        Raises:
            MissingExtraError: If transformers is not installed.
            OSError: If the model's config cannot be read.
        """
        config = self._config
        wide = max(config.hidden_size, getattr(config, "projection_dim", 0) or 0)
        # One more for the token of the whole picture, which all but SigLIP have.
        tokens = (self._preparation.edge // config.patch_size) ** 2 + 1
        numbers = tokens * config.hidden_size + (0 if self.pooled == "none" else wide)
        return int(numbers) * self._rows_dtype.itemsize

    def _load(self) -> Any:
        if self.kind is None:
            kind = optional_package("transformers", type(self).__name__).AutoModel
        else:
            instead = "CLIPVisionModelWithProjection, or leave it out"
            kind = self._class_named(self.kind, instead)
        return self._loaded_as(kind, "vision_model")

    def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode uint8 RGB [B, H, W, 3] of any edges to rows, on the CPU.

        Returns:
            "embeds" [B, L, D] of the layer, a vector for each part of the picture; and "pooled"
            [B, D], where there is one.

        Raises:
            ConfigError: The model lacks the layer or output that the settings ask for.
            MissingExtraError: If transformers is not installed.
        """
        module, device = self._ready(), resolve_device(self.device)
        images = self._prepared(pixels.to(device)).to(self._compute)
        with torch.no_grad():
            output = module(pixel_values=images, output_hidden_states=self.layer != -1)
            states = hidden_layer(output, self.layer, module, self.final_norm)
            whole = torch.ones(states.shape[:2], dtype=torch.bool, device=device)
            pooled = pooled_vector(output, self.pooled, states, whole, module)
        fields = {"embeds": states.to("cpu", self._rows_dtype)}
        if pooled is not None:
            fields["pooled"] = pooled.to("cpu", self._rows_dtype)
        return fields

    def _prepared(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return pictures as the model wants them: float32 [B, 3, edge, edge]."""
        edge, resize, mean, std = self._preparation
        images = pixels.movedim(-1, 1).float() / _LEVELS
        height, width = images.shape[-2:]
        size = (edge, edge)
        if resize == "crop":
            short = min(height, width)
            size = (round(height * edge / short), round(width * edge / short))
        images = interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (size[0] - edge) // 2, (size[1] - edge) // 2
        images = images[..., top : top + edge, left : left + edge]
        colours = torch.tensor([mean, std], device=images.device)[..., None, None]
        return (images - colours[0]) / colours[1]
