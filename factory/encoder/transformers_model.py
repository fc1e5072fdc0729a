"""What encoders of captions and of pictures by models of transformers have in common."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from factory.encoder.outputs import check_choice
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
