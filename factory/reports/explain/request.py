"""Request for an explanation: steps, or the steps that used a sample."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from factory.errors import ConfigError

# Steps shown at once: a range is there to look at a loss that rose, not to list a run.
MOST_STEPS = 1000


@dataclass(frozen=True)
class ExplainRequest:
    """What is asked.

    Attributes:
        first: The first global step asked about, from 0; None if a sample is.
        last: The last one.
        sample: The sample asked about, as KEY or BACKEND:KEY; None if steps are.
    """

    first: int | None = None
    last: int | None = None
    sample: str | None = None


def parse(texts: Sequence[str]) -> ExplainRequest:
    """Read "step=12", "step=12..40" or "sample=KEY"; steps count from 1 there.

    Raises:
        ConfigError: It is none of them, or several.
    """
    if len(texts) != 1:
        given = " ".join(texts) or "nothing"
        raise ConfigError(f"ask for one of step=12, step=12..40 or sample=KEY; got {given}")
    [text] = texts
    if text.startswith("sample=") and text != "sample=":
        return ExplainRequest(sample=text.partition("=")[2])
    found = re.fullmatch(r"step=(\d+)(?:\.\.(\d+))?", text)
    if found is None:
        raise ConfigError(f"{text}: ask for step=12, step=12..40 or sample=KEY")
    first, last = int(found[1]), int(found[2] or found[1])
    if first < 1 or last < first:
        raise ConfigError(f"{text}: steps count from 1, and a range goes up, such as step=12..40")
    if last - first >= MOST_STEPS:
        raise ConfigError(
            f"{text} asks for {last - first + 1} steps; {MOST_STEPS} are shown at once: "
            f"step={first}..{first + MOST_STEPS - 1}"
        )
    return ExplainRequest(first - 1, last - 1)
