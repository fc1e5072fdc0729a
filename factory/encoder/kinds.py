"""Kinds of encoders: which a store of embeddings takes, and which are toys of the demo."""

import inspect

from factory.errors import ConfigError

# What each kind encodes, and how to choose one, by its name in the config group `encoder`.
_KINDS = {
    "image": ("pictures to latents", "encoder/image=autoencoder"),
    "text": ("captions", "encoder/text=transformers"),
    "vision": ("pictures to embeddings", "encoder/vision=transformers"),
}
# Classes that learned nothing, by the beginning of their fingerprints: they let the demo and
# tests run without weights.
_TOYS = {"BlockDCT": "image", "HashedText": "text"}


def check_kind(store: str, wanted: str, encoder: object) -> None:
    """Refuse an encoder of another kind, without asking it for anything.

    Args:
        store: Name of the backend of embeddings.
        wanted: The kind it takes: "image", "text" or "vision".
        encoder: Its encoder.

    Raises:
        ConfigError: Names the encoder, what it encodes and how to choose one that fits.
    """
    found = _kind_of(encoder)
    if found is not None and found != wanted:
        other = _KINDS[found][0]
        encodes, choice = _KINDS[wanted]
        raise ConfigError(
            f"data.backends.{store}.encoder is {type(encoder).__name__}, which encodes {other}; "
            f"this store needs an encoder of {encodes}: choose one, such as {choice} "
            f"encoder.{wanted}.model=MODEL"
        )


def _kind_of(encoder: object) -> str | None:
    """Return the kind of an encoder whose `encode` names what it takes as the contracts do.

    None of others, which may be of any kind. It is looked up, not asked, so that no property
    reads a model's config.
    """
    encode = getattr(type(encoder), "encode", None)
    names = [] if encode is None else list(inspect.signature(encode).parameters)[1:2]
    if names == ["captions"]:
        return "text"
    if names != ["pixels"]:
        return None
    missing = object()
    shrinks = inspect.getattr_static(encoder, "downscale", missing) is not missing
    return "image" if shrinks else "vision"


def is_toy(fingerprint: str) -> bool:
    """Tell by an encoder's fingerprint whether it has learned nothing."""
    return fingerprint.partition("/")[0] in _TOYS


def toy_advice(store: str, encoder: object) -> str | None:
    """Return a warning about an encoder that is for the demo alone; None for others.

    Args:
        store: Name of the backend of embeddings.
        encoder: Its encoder.
    """
    name = type(encoder).__name__
    if name not in _TOYS:
        return None
    kind = _TOYS[name]
    encodes, choice = _KINDS[kind]
    return (
        f"data.backends.{store} encodes {encodes} by {name}, a toy of the demo that has learned "
        f"nothing and fits no pretrained model; choose {choice} encoder.{kind}.model=MODEL"
    )
