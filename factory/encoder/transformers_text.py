"""Text encoders by models of the transformers library."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from factory.encoder.base import Truncation
from factory.encoder.pretrained import (
    optional_package,
    resolve_device,
    weights_identity,
)
from factory.encoder.transformers_model import TransformersModel, hidden_layer, pooled_vector
from factory.errors import ConfigError

# Captions whose tokens are counted at once: enough for the tokenizer's threads, and little
# memory (10,000 tokens of 8 bytes for each of them would be 300 MB).
_COUNTED_AT_ONCE = 4096
_CAPTION = "{caption}"


@dataclass(kw_only=True)
class TransformersTextEncoder(TransformersModel):
    """Encodes captions with a text model of the `transformers` library.

    Encoders (CLIP, T5, BERT, ...) and language models (Llama, Qwen, Gemma, ...) alike. Rows are
    padded or cut to `max_length` tokens, or padded to a length of `length_classes`. Only
    safetensors weights are read, and no remote code is run.

    Attributes:
        model: Hub id or local folder of the text model.
        kind: Class of transformers, such as "CLIPTextModelWithProjection"; None for the one
            that encodes text alone, if the model has one.
        subfolder: Folder of the text model inside `model`, such as "text_encoder".
        tokenizer_subfolder: Folder of the tokenizer inside `model`, such as "tokenizer".
        revision: Branch, tag or, better, commit of a Hub id.
        variant: Which of the weights a model comes with, such as "fp16".
        max_length: Tokens L of every row, those of `drop_tokens` not counted.
        length_classes: Instead, lengths that rows are padded to, ascending: to the first that
            holds the caption; the last one cuts. Short captions take less room then.
        layer: Layer that "embeds" are of: -1 is the last one, with the norm that follows it;
            -2 the one before it, without, as Stable Diffusion XL uses; and so on.
        final_norm: Give an earlier layer the norm that follows the last one.
        pooled: Where "pooled" comes from: "auto" (the projection or pooler's output, where the
            model has one), "none", "projection", "pooler", or the "first", "last" (end of
            text) or "mean" of the layer's tokens.
        zero_mask: Set "embeds" to zero where there is only padding.
        attend_padding: Let the model see padding as if it were text, as the pipelines of
            Stable Diffusion and Flux do; "mask" tells the caption's own tokens all the same.
        template: Text the caption is put into, such as "Describe: {caption}".
        drop_tokens: Tokens at the beginning that no row holds: those of the template.
        padding_side: "right" or "left"; None for the tokenizer's own.
        tokenizer_options: Other arguments of the tokenizer's call, such as
            `add_special_tokens`.
        dtype: Type of embeds and pooled: "float16", "bfloat16" or "float32".
        compute_dtype: Type the weights have while encoding.
        device: "cpu", "cuda", ..., or "auto" for the accelerator where there is one.

    Raises:
        ConfigError: If a setting is out of range.
    """

    persisted_as: ClassVar[str] = "TransformersTextEncoder"

    tokenizer_subfolder: str = ""
    max_length: int = 77
    length_classes: Sequence[int] = ()
    zero_mask: bool = False
    attend_padding: bool = False
    template: str = _CAPTION
    drop_tokens: int = 0
    padding_side: str | None = None
    tokenizer_options: dict[str, Any] = field(default_factory=dict)
    _truncation: Truncation | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        owner = type(self).__name__
        self.length_classes = tuple(self.length_classes)
        for name, bound in (("max_length", 1), ("drop_tokens", 0)):
            if getattr(self, name) < bound:
                raise ConfigError(
                    f"{owner}.{name} is {getattr(self, name)}; allowed are {bound} and more"
                )
        self._one_of("padding_side", (None, "right", "left"))
        if _CAPTION not in self.template:
            raise ConfigError(f"{owner}.template is {self.template!r}; it must hold {_CAPTION}")
        self._check_classes(owner)

    def _check_classes(self, owner: str) -> None:
        classes = list(self.length_classes)
        if classes != sorted(set(classes)) or (classes and classes[0] < 1):
            raise ConfigError(
                f"{owner}.length_classes is {classes}; they must ascend from 1 or more, such as "
                "[64, 128, 256]"
            )
        if self.padding_side == "left" and (classes or self.drop_tokens):
            # Rows are made longer, and the template's tokens found, at fixed ends.
            raise ConfigError(
                f"{owner}.padding_side is 'left', which goes with neither length_classes nor "
                "drop_tokens; set it to 'right'"
            )

    def _weights(self) -> str:
        return weights_identity(self.model, self.revision, self.subfolder, self.tokenizer_subfolder)

    def _aside(self) -> frozenset[str]:
        return self.ASIDE | {"max_length"} if self.length_classes else self.ASIDE

    @property
    def _longest(self) -> int:
        return self.length_classes[-1] if self.length_classes else self.max_length

    def row_bytes(self) -> int:
        """Return the bytes of the longest row; reads the model's config, not its weights.

        A pooled vector is counted unless `pooled` is "none", though some models have none.

        Raises:
            MissingExtraError: If transformers is not installed.
            OSError: If the model's config cannot be read.
        """
        config = self._model_config.get_text_config()
        wide = max(config.hidden_size, getattr(config, "projection_dim", 0) or 0)
        numbers = self._longest * config.hidden_size + (0 if self.pooled == "none" else wide)
        return int(numbers) * self._rows_dtype.itemsize + self._longest

    @cached_property
    def _tokenizer(self) -> Any:
        library = optional_package("transformers", type(self).__name__)
        tokenizer = library.AutoTokenizer.from_pretrained(
            self.model, revision=self.revision, subfolder=self.tokenizer_subfolder,
            trust_remote_code=False,
        )  # fmt: skip
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if self.length_classes or self.drop_tokens:
            tokenizer.padding_side = "right"
        if self.padding_side is not None:
            tokenizer.padding_side = self.padding_side
        return tokenizer

    def _load(self) -> Any:
        return self._loaded_as(self._class(), "text_model")

    def _class(self) -> Any:
        config = self._model_config
        library = optional_package("transformers", type(self).__name__)
        if self.kind is None and type(config) in library.MODEL_FOR_TEXT_ENCODING_MAPPING:
            # An encoder-decoder such as T5 has a class for its encoder alone.
            return library.AutoModelForTextEncoding
        if self.kind is None and type(config) in library.MODEL_MAPPING:
            return library.AutoModel
        name = self.kind or next(iter(config.architectures or ()), "")
        return self._class_named(name, "CLIPTextModelWithProjection or T5EncoderModel")

    def length_classes_of(self, captions: Sequence[str]) -> NDArray[np.int64]:
        """Return the length of each caption's row, int64 [B]; needs the tokenizer alone."""
        if not self.length_classes:
            return np.full(len(captions), self.max_length, dtype=np.int64)
        classes = np.array(self.length_classes, dtype=np.int64)
        places = classes.searchsorted(self._counts(captions)).clip(max=len(classes) - 1)
        found: NDArray[np.int64] = classes[places]
        return found

    def _counts(self, captions: Sequence[str]) -> NDArray[np.int64]:
        """Count the tokens of each caption that rows would hold if none were cut."""
        counts: list[int] = []
        with self._lock:  # a tokenizer is not used by two threads at once
            for start in range(0, len(captions), _COUNTED_AT_ONCE):
                texts = self._texts(captions[start : start + _COUNTED_AT_ONCE])
                found = self._tokenizer(texts, verbose=False, **self.tokenizer_options)
                counts += map(len, found["input_ids"])
        return np.array(counts, dtype=np.int64) - self.drop_tokens

    def _texts(self, captions: Sequence[str]) -> list[str]:
        return [self.template.replace(_CAPTION, caption) for caption in captions]

    def _tokens(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and mask of equal length, int64 and bool [B, drop_tokens + L]."""
        counts = self._counts(captions)
        self._note_cuts(captions, counts)
        length = next((n for n in self.length_classes if n >= counts.max()), self._longest)
        with self._lock:
            tokens = self._tokenizer(
                self._texts(captions), padding="max_length", truncation=True,
                max_length=length + self.drop_tokens, return_tensors="pt",
                **self.tokenizer_options,
            )  # fmt: skip
        return tokens["input_ids"], tokens["attention_mask"].bool()

    def _note_cuts(self, captions: Sequence[str], counts: NDArray[np.int64]) -> None:
        setting = "length_classes" if self.length_classes else "max_length"
        with self._lock:
            so_far = self._truncation or Truncation(
                f"{type(self).__name__} of {self.model}", self._longest, setting
            )
            at, most = int(counts.argmax()), int(counts.max())
            if most > max(so_far.longest, self._longest):
                so_far = replace(so_far, longest=most, example=captions[at])
            self._truncation = replace(
                so_far,
                captions=so_far.captions + len(captions),
                cut=so_far.cut + int((counts > self._longest).sum()),
            )

    def truncations(self) -> list[Truncation]:
        """Return what was cut since it was made or last released; empty if nothing was."""
        found = self._truncation
        return [] if found is None or not found.cut else [found]

    def encode(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Encode captions to rows of equal shape, on the CPU.

        Returns:
            "embeds" [B, L, D] of the layer; "mask" bool [B, L], True at tokens of the caption
            (at one of padding where it has none, so that no row is masked entirely); and
            "pooled" [B, D], where there is one.

        Raises:
            ConfigError: The model lacks the layer or output that the settings ask for.
            MissingExtraError: If transformers is not installed.
        """
        ids, mask = self._tokens(captions)
        side = self._tokenizer.padding_side
        module, device = self._ready(), resolve_device(self.device)
        ids, mask = ids.to(device), _never_empty(mask.to(device), side)
        seen = torch.ones_like(mask) if self.attend_padding else mask
        with torch.no_grad():
            output = module(
                input_ids=ids, attention_mask=seen.long(), output_hidden_states=self.layer != -1
            )
            states = hidden_layer(output, self.layer, module, self.final_norm)
            states, mask = states[:, self.drop_tokens :], mask[:, self.drop_tokens :]
            mask = _never_empty(mask, side)
            pooled = pooled_vector(output, self.pooled, states, mask, module)
        if self.zero_mask:
            states = states * mask[..., None]
        fields = {"embeds": states.to("cpu", self._rows_dtype), "mask": mask.cpu()}
        if pooled is not None:
            fields["pooled"] = pooled.to("cpu", self._rows_dtype)
        return fields

    def release(self) -> None:
        """Free weights and device memory; the next call loads them again."""
        super().release()
        with self._lock:
            self._truncation = None


def _never_empty(mask: torch.Tensor, padding_side: str) -> torch.Tensor:
    """Return a mask bool [B, L] that is True at one place at least of every row.

    A caption without tokens would otherwise be attended nowhere, which gives NaN.
    """
    filled = mask.clone()
    filled[:, -1 if padding_side == "left" else 0] |= ~mask.any(dim=1)
    return filled
