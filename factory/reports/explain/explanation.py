"""Explanations of steps: what can be asked, and the answer as plain values for every output."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from factory.errors import ConfigError
from factory.reports.wording import number, plural
from factory.sampling.exclusion import Exclude
from factory.untrusted_text import config_value, shell_word

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


@dataclass(frozen=True)
class ReplacedSample:
    """A sample that another stands in for.

    Attributes:
        key: Its storage key.
        stage: "exclude", or what failed: "read" or "decode".
        reason: Why it was not used.
    """

    key: str
    stage: str
    reason: str


@dataclass(frozen=True)
class ExplainedSample:
    """One place of a global batch.

    Attributes:
        place: The place, from 0.
        row: Row in the catalog; of a stream, its number in the epoch.
        key: Storage key; "" where it is not known.
        rank: The process that used it, from 0; None where that is not on record.
        micro: The micro-batch that it was in, from 0; None where that is not on record.
        width: Width, px; 0 where it is not known.
        height: Height, px.
        bytes: Bytes of the object; negative where the storage does not tell.
        etag: Version of the object.
        resized: Size it is resized to, px.
        crop: Offset of the cut in that, px from (top, left).
        target: Size of the cut, px.
        caption: The caption used in this epoch.
        fills: Whether it only fills the batch.
        partners: Keys of its conditioning partners, by backend.
        instead_of: What it stands in for, the last one first.
        dropped: Why it is dropped as things are decided now; "" where it is kept.
    """

    place: int
    row: int
    key: str = ""
    rank: int | None = None
    micro: int | None = None
    width: int = 0
    height: int = 0
    bytes: int = -1
    etag: str = ""
    resized: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    target: tuple[int, int] | None = None
    caption: str = ""
    fills: bool = False
    partners: dict[str, str] = field(default_factory=dict)
    instead_of: tuple[ReplacedSample, ...] = ()
    dropped: str = ""

    @property
    def upscale(self) -> float | None:
        """How much it is enlarged, 1 for not at all; None where that is not known."""
        return self.resized[0] / self.width if self.resized and self.width else None


@dataclass(frozen=True)
class BackendChoice:
    """How a backend stood when the step's backend was chosen.

    Attributes:
        backend: Its name.
        weight: Its weight; 0 if it does not take part.
        share: Share of the steps it asks for, 0 to 1.
        given: Batches it has given since the backends and weights are these.
        owed: Batches it is behind its share, the step included.
        left: Batches until it has given all it holds in the epoch; None where it goes on, as
            epochs are of fixed length.
        window: When it takes part.
    """

    backend: str
    weight: float
    share: float
    given: int
    owed: float
    left: int | None
    window: str

    @property
    def batches_left(self) -> str:
        """The batches it has left in the epoch, in words."""
        return "-" if self.left is None else number(self.left)


@dataclass(frozen=True)
class ExplainedStep:
    """One optimizer step; all numbers for people, so they count from 1.

    Attributes:
        number: The step of the run.
        epoch: The epoch.
        step: The step of the epoch.
        steps: Steps of the epoch; 0 where the plan is another.
        backend: Backend it draws from.
        bucket: Its bucket.
        pass_number: The pass over the backend; 0 where the plan is another.
        passes: Passes in an epoch; 0 where passes are counted over the whole run.
        fills: Samples that only fill the batch.
        since: The step of the epoch since which backends and weights are these; below 1 where
            they have been since an epoch before.
        choices: How each backend stood; empty where the plan is another.
        ranks: Processes that shared it; None where that is not on record.
        micros: Micro-batches of each; None where that is not on record.
        samples: Its samples, in the order of their places.
        notes: What is odd about it.
    """

    number: int
    epoch: int
    step: int
    steps: int
    backend: str
    bucket: str
    pass_number: int
    passes: int
    fills: int
    since: int
    choices: tuple[BackendChoice, ...]
    ranks: int | None
    micros: int | None
    samples: tuple[ExplainedSample, ...]
    notes: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """As "Step 12: step 3 of 9 in epoch 2, from photos, bucket 128x96"."""
        of = f" of {number(self.steps)}" if self.steps else ""
        return (
            f"Step {number(self.number)}: step {number(self.step)}{of} in epoch "
            f"{number(self.epoch)}, from {self.backend}, bucket {self.bucket}"
        )

    @property
    def shared(self) -> str:
        """How it was shared, and what it is in its backend."""
        said = [plural(len(self.samples), "sample")]
        if self.pass_number:
            # More than there are where a backend that is done begins again.
            of = f" of {self.passes}" if self.pass_number <= self.passes else ""
            said.append(f"pass {number(self.pass_number)}{of} over {self.backend}")
        if self.fills:
            said.append(f"{number(self.fills)} of them only fill the batch")
        if self.ranks is not None and self.micros is not None:
            ranks, micros = plural(self.ranks, "process"), plural(self.micros, "micro-batch")
            said.append(f"used by {ranks}, {micros} each")
        return ", ".join(said)

    @property
    def since_step(self) -> str:
        """As "step 3 of the epoch", since which backends and weights are the same."""
        if self.since < 1:
            return f"step {number(self.number - self.step + self.since)} of the run"
        return f"step {number(self.since)} of the epoch"


@dataclass(frozen=True)
class Explanation:
    """The answer to a request.

    Attributes:
        run: The run's folder, as text.
        fingerprint: Fingerprint of the plan as it is now.
        recorded: First and last step on record, from 1; None without a ledger.
        steps: The steps asked about.
        notes: What holds for all of them.
        exclude: What can be pasted to leave samples out.
    """

    run: str
    fingerprint: str
    recorded: tuple[int, int] | None
    steps: tuple[ExplainedStep, ...]
    notes: tuple[str, ...]
    exclude: str

    def as_json(self) -> dict[str, Any]:
        """Return everything in values that JSON can hold."""
        return asdict(self)


def exclude_line(ids: Sequence[str], from_step: int, kept: Sequence[Exclude] = ()) -> str:
    """Return the override, quoted for a shell, that leaves samples out from a step on.

    Args:
        ids: The samples, as BACKEND:KEY.
        from_step: First step without them, from 1.
        kept: What the run leaves out already; an override replaces it, so it is said again.
    """
    entries = [_entry(one.ids, one.from_step) for one in kept]
    return shell_word(f"data.exclude=[{', '.join([*entries, _entry(ids, from_step)])}]")


def _entry(ids: Sequence[str], from_step: int) -> str:
    return f"{{from_step: {from_step}, ids: [{', '.join(map(config_value, ids))}]}}"
