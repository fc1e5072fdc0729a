"""Encode modes: when samples and captions are encoded, and whether the rows are kept."""

from enum import StrEnum


class EncodeMode(StrEnum):
    """When a dataset's samples, or its captions, are encoded.

    What a key names never differs, so modes may be changed from run to run: rows that one has
    written are used by every other that looks for them.
    """

    precompute = "precompute"
    """All of them before the first step."""

    on_demand = "on_demand"
    """Each when a batch first needs it; what is encoded is kept."""

    transient = "transient"
    """Each time a batch needs it; nothing is looked for in the cache, or kept."""

    each_epoch = "each_epoch"
    """As on demand, with random cuts drawn anew in each epoch; kept until the epoch ends."""

    @property
    def ahead(self) -> bool:
        """Whether everything is encoded before training, so that a missing row was lost."""
        return self is EncodeMode.precompute

    @property
    def keeps(self) -> bool:
        """Whether encoded rows are written to the cache, and looked for there."""
        return self is not EncodeMode.transient

    @property
    def redraws(self) -> bool:
        """Whether random cuts are drawn anew in each epoch."""
        return self is EncodeMode.each_epoch


def as_mode(value: str, key: str) -> EncodeMode:
    """Return the mode of a name.

    Args:
        value: The name.
        key: Where it was set, for the message.

    Raises:
        ValueError: There is no such mode.
    """
    try:
        return EncodeMode(str(value))
    except ValueError:
        allowed = ", ".join(EncodeMode)
        raise ValueError(f"{key} must be one of {allowed}, got {value!r}") from None


def check_caption_mode(mode: str, key: str) -> None:
    """Refuse what makes no sense for captions.

    Args:
        mode: The mode.
        key: Where it was set, for the message.

    Raises:
        ValueError: It is for pictures alone.
    """
    if mode == EncodeMode.each_epoch:
        raise ValueError(
            f"{key}=each_epoch draws cuts of pictures anew, and captions have none; set "
            f"{key}=precompute or on_demand"
        )
