"""Base of encoders by models of transformers, and the outputs that become fields of a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch

from factory.encoder.pretrained import Pretrained, optional_package
from factory.errors import ConfigError


@dataclass(kw_only=True)
class TransformersModel(Pretrained):
    """A model of transformers, and which of its outputs become fields.

    Only safetensors weights are read, and code that comes with a model is never run.

    Attributes:
        model: Hub id or local folder of the model.
        kind: Class of transformers; None for the one that fits the model's config.
        subfolder: Folder of the model inside `model`.
        layer: Layer that "embeds" are of, counted from the last, -1.
        final_norm: Give an earlier layer the norm that follows the last one.
        pooled: Where "pooled" comes from, one of `outputs.POOLED`.
    """

    ASIDE: ClassVar[frozenset[str]] = Pretrained.ASIDE | {"model"}

    model: str
    kind: str | None = None
    subfolder: str = ""
    layer: int = -1
    final_norm: bool = False
    pooled: str = "auto"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_choice(type(self).__name__, self.layer, self.final_norm, self.pooled)

    @cached_property
    def _model_config(self) -> Any:
        """The config of the whole model.

        Raises:
            ConfigError: transformers has no such kind of model.
            MissingExtraError: It is not installed.
            OSError: The config cannot be read.
        """
        owner = type(self).__name__
        library = optional_package("transformers", owner)
        try:
            # Left out, the library would ask at the terminal whether to run it.
            return library.AutoConfig.from_pretrained(
                self.model, revision=self.revision, subfolder=self.subfolder,
                trust_remote_code=False,
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(
                f"{owner}.model is {self.model!r}, of a kind that the installed transformers "
                "lacks, and code that comes with a model is never run; name another one, or "
                f"install a transformers that has it ({str(error).strip().splitlines()[0]})"
            ) from error

    def _class_named(self, name: str, instead: str) -> Any:
        """Return a class of transformers; `instead` says what to name if there is none."""
        library = optional_package("transformers", type(self).__name__)
        kind = getattr(library, name, None)
        if not (isinstance(kind, type) and issubclass(kind, library.PreTrainedModel)):
            raise ConfigError(
                f"{type(self).__name__}.kind is {name!r}, which is no model of transformers; "
                f"give a class such as {instead}"
            )
        return kind

    def _loaded_as(self, kind: Any, half: str) -> Any:
        """Load the weights; of a model of pictures and text its half of that name."""
        module = kind.from_pretrained(
            self.model, revision=self.revision, subfolder=self.subfolder, variant=self.variant,
            use_safetensors=True, trust_remote_code=False, dtype=self._compute,
        )  # fmt: skip
        return module if self.kind else getattr(module, half, module)


# Where models keep the norm that follows their last layer, and what they call it.
_NORM_OWNERS = ("", "text_model", "vision_model", "encoder", "decoder", "model", "language_model")
_NORM_NAMES = ("final_layer_norm", "norm", "layernorm", "post_layernorm")
# Pooled outputs in the order they are preferred in: projections first, then what was projected.
_PROJECTIONS = ("text_embeds", "image_embeds")
_POOLED = {"auto": (*_PROJECTIONS, "pooler_output"), "projection": _PROJECTIONS,
           "pooler": ("pooler_output",)}  # fmt: skip
# Where a row's pooled vector comes from: an output of the model, none, or the layer that is kept.
POOLED = ("auto", "none", "projection", "pooler", "first", "last", "mean")


def check_choice(owner: str, layer: int, final_norm: bool, pooled: str) -> None:
    """Refuse settings that choose no output.

    Raises:
        ConfigError: One is out of range.
    """
    if layer >= 0:
        raise ConfigError(
            f"{owner}.layer is {layer}; layers are counted from the last, -1, backwards: -2 is "
            "the one before it"
        )
    if final_norm and layer == -1:
        raise ConfigError(
            f"{owner}.final_norm is for an earlier layer, the last one has it already; set "
            f"{owner}.layer=-2 or leave final_norm out"
        )
    if pooled not in POOLED:
        raise ConfigError(
            f"{owner}.pooled is {pooled!r}; allowed are {', '.join(map(repr, POOLED))}"
        )


def hidden_layer(output: Any, layer: int, module: torch.nn.Module, norm: bool) -> torch.Tensor:
    """Return the states [B, L, D] of a layer, counted from the last, -1.

    Args:
        output: What the model gave, with all hidden states unless the last layer is wanted.
        layer: Which one; the last as the model gives it, others as they leave their layer.
        module: The model.
        norm: Give an earlier layer the norm that follows the last one.

    Raises:
        ConfigError: The model has no such layer, or no such norm.
    """
    if layer == -1:
        last: torch.Tensor = output.last_hidden_state
        return last
    layers: Sequence[torch.Tensor] = output.hidden_states
    if -layer > len(layers):
        raise ConfigError(
            f"layer is {layer}, and {type(module).__name__} has {len(layers) - 1} layers above its "
            f"embeddings; set it to {-len(layers)} or above"
        )
    return _final_norm(module)(layers[layer]) if norm else layers[layer]


def _final_norm(module: torch.nn.Module) -> Any:
    for place in _NORM_OWNERS:
        owner = getattr(module, place, None) if place else module
        for name in _NORM_NAMES:
            if hasattr(owner, name):
                return getattr(owner, name)
    raise ConfigError(
        f"{type(module).__name__} has no norm after its last layer; leave final_norm out"
    )


def pooled_vector(
    output: Any, how: str, states: torch.Tensor, mask: torch.Tensor, module: torch.nn.Module
) -> torch.Tensor | None:
    """Return one vector for each row, [B, D]; None where there is none.

    Args:
        output: What the model gave.
        how: One of `POOLED`: "auto" for the model's own, if it has one; "first", "last" or
            "mean" of the states that count.
        states: States [B, L, D] of the layer that is kept.
        mask: Which of them count, bool [B, L].
        module: The model, for messages.

    Raises:
        ConfigError: The model has no such output.
    """
    if how == "none":
        return None
    rows = torch.arange(len(states), device=states.device)
    if how == "first":
        return states[rows, mask.int().argmax(dim=1)]
    if how == "last":
        return states[rows, mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)]
    if how == "mean":
        count = mask.sum(dim=1, keepdim=True)
        return (states.float() * mask[..., None]).sum(dim=1) / count
    found = (getattr(output, name, None) for name in _POOLED[how])
    vector: torch.Tensor | None = next((each for each in found if each is not None), None)
    if vector is None and how != "auto":
        raise ConfigError(
            f"pooled is {how!r}, and {type(module).__name__} has no such output; set kind to a "
            "class that has it, such as CLIPTextModelWithProjection, or pooled to another of "
            f"{', '.join(POOLED)}"
        )
    return vector
