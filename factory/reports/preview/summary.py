"""Summary of a dry run as plain values, the same for terminal, page and JSON."""

from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal

# Raised when a field of the JSON changes its meaning.
FORMAT = 1

Level = Literal["stop", "warn", "note"]


@dataclass(frozen=True)
class RunLimits:
    """What the trainer will do, as far as data is concerned.

    Attributes:
        max_steps: Optimizer steps of the run; None for no limit.
        max_epochs: Epochs of the run; None for no limit.
        ranks: Processes that share each global batch.
        micros: Micro-batches per optimizer step.
    """

    max_steps: int | None = None
    max_epochs: int | None = None
    ranks: int = 1
    micros: int = 1


@dataclass(frozen=True)
class Problem:
    """Something to know before training.

    Attributes:
        level: "stop" keeps the run from training; "warn" makes it do what is hardly meant;
            "note" is worth a look.
        backend: Name of the backend; None where it is the run's.
        text: What is the case.
        fix: The smallest change that mends it.
    """

    level: Level
    backend: str | None
    text: str
    fix: str


@dataclass(frozen=True)
class BucketSummary:
    """One bucket of a backend; counts of batches are for one pass.

    Attributes:
        name: The target shape as "WIDTHxHEIGHT", or "WIDTHxHEIGHT@FRAMES" of clips.
        width: Target width, px.
        height: Target height, px.
        frames: Frames of each sample; 1 for still pictures.
        samples: Samples in it.
        batches: Global batches it gives.
        filled: Samples given twice or more to fill its last batch.
        left_out: Samples left out for want of a full batch.
    """

    name: str
    width: int
    height: int
    frames: int
    samples: int
    batches: int
    filled: int
    left_out: int


@dataclass(frozen=True)
class DroppedSamples:
    """Samples dropped for one reason.

    Attributes:
        reason: The reason.
        count: Samples.
        examples: Names of the first few.
        advice: How to keep them; None where the samples themselves need mending.
    """

    reason: str
    count: int
    examples: tuple[str, ...]
    advice: str | None


@dataclass(frozen=True)
class BackendCosts:
    """What one backend costs; bytes are None where they cannot be told.

    Attributes:
        scan_requests: Reads that a first scan makes; later ones read what is new.
        scan_bytes: Bytes of them at most.
        encode_requests: Objects read before the first step to be encoded, once for each of
            latents and image embeddings; 0 where none is encoded so early.
        encode_bytes: Bytes of them.
        epoch_requests: Objects read from the source in each epoch (or validation); on demand in
            the first one, until all are encoded.
        epoch_bytes: Bytes of them.
        epoch_cache_bytes: Bytes of latents and image embeddings gathered from the cache in each
            epoch.
        latents_bytes: Space the latents need in the cache.
        image_embeds_bytes: Space the image embeddings to condition on need in it.
        catalog_bytes: Space of the published facts.
        encode_mode: When its pictures are encoded; None where pixels are read.
    """

    scan_requests: int
    scan_bytes: int | None
    encode_requests: int
    encode_bytes: int | None
    epoch_requests: int
    epoch_bytes: int | None
    epoch_cache_bytes: int | None
    latents_bytes: int | None
    image_embeds_bytes: int | None
    catalog_bytes: int | None
    encode_mode: str | None = None


@dataclass(frozen=True)
class BackendSummary:
    """What a backend of samples holds.

    Attributes:
        name: Its name.
        kind: "image", "video", "eval" or "conditioning".
        where: Identity of its storage and the folder in it; holds no secret.
        found: Samples found.
        kept: Samples kept.
        bytes: Size of the kept ones; None where a storage does not tell sizes.
        dropped: Samples dropped, by reason, most first.
        buckets: Its buckets, most samples first.
        enlarged: Kept samples smaller than their target along an edge.
        examples: Names of a few kept samples.
        costs: What it costs.
    """

    name: str
    kind: str
    where: str
    found: int
    kept: int
    bytes: int | None
    dropped: tuple[DroppedSamples, ...]
    buckets: tuple[BucketSummary, ...]
    enlarged: int
    examples: tuple[str, ...]
    costs: BackendCosts

    @property
    def largest(self) -> int:
        """Samples of a pass in its largest bucket, those that fill included; at least 1."""
        return max((bucket.samples + bucket.filled for bucket in self.buckets), default=1)


@dataclass(frozen=True)
class BackendShare:
    """What one backend gives in an epoch.

    Attributes:
        backend: Its name.
        weight: Its weight in the mixture.
        batches: Global batches.
        samples: Samples, those that fill included.
        filled: Samples given again to fill short batches.
        left_out: Samples left out by short_batch=drop.
        asked: Share of the steps it asks for when it first takes part, 0 to 1.
        achieved: Share of the epoch's steps it serves, 0 to 1.
    """

    backend: str
    weight: float
    batches: int
    samples: int
    filled: int
    left_out: int
    asked: float
    achieved: float


@dataclass(frozen=True)
class StretchSummary:
    """Steps of an epoch in which the same backends take part.

    Attributes:
        first: First step in the epoch, from 1.
        last: Last one.
        asked: Share asked for, by backend, 0 to 1; the mean of one that fades.
        achieved: Share served, by backend, 0 to 1.
        batches: Global batches, by backend.
        samples: Samples, those that fill included, by backend.
    """

    first: int
    last: int
    asked: dict[str, float]
    achieved: dict[str, float]
    batches: dict[str, int]
    samples: dict[str, int]


@dataclass(frozen=True)
class EpochSummary:
    """One epoch.

    Attributes:
        number: From 1.
        first_step: Its first optimizer step in the run, from 1.
        steps: Its optimizer steps.
        begins: Names of the backends that serve its first steps, at most 200.
        shares: What each backend gives.
        stretches: Its parts, in order.
        schedule: Hash of which backend serves each step, 32 hex digits.
    """

    number: int
    first_step: int
    steps: int
    begins: tuple[str, ...]
    shares: tuple[BackendShare, ...]
    stretches: tuple[StretchSummary, ...]
    schedule: str

    @property
    def runs(self) -> list[tuple[int, int, str]]:
        """(first step, last step, backend) of what `begins` holds, from 1."""
        found, last = [], 0
        for name, steps in groupby(self.begins):
            first, last = last + 1, last + len(list(steps))
            found.append((first, last, name))
        return found


@dataclass(frozen=True)
class PlanSummary:
    """The plan of the run.

    Attributes:
        fingerprint: Hash of everything that shapes the order, 32 hex digits.
        batch_size: Samples of a global batch.
        short_batch: What becomes of a bucket's last batch.
        seed: Seed of the order.
        epoch_rule: When an epoch ends.
        epoch_steps: Length of every epoch, optimizer steps; None where the rule sets it.
        epochs: The first epoch, and those in which a window opens or closes.
        run_steps: Steps of the whole run; None for no limit.
        run_epochs: Epochs of the whole run, the last one perhaps in part; None for no limit.
    """

    fingerprint: str
    batch_size: int
    short_batch: str
    seed: int
    epoch_rule: str
    epoch_steps: int | None
    epochs: tuple[EpochSummary, ...]
    run_steps: int | None
    run_epochs: float | None


@dataclass(frozen=True)
class CaptionSummary:
    """Captions of the kept samples.

    Attributes:
        captions: Different ones.
        exact: Whether they were counted, or estimated from a sample of the rows.
        bytes: Space their embeddings need in the cache; None where it cannot be told.
        encoded: Whether they are encoded at all.
    """

    captions: int
    exact: bool
    bytes: int | None
    encoded: bool


@dataclass(frozen=True)
class Summary:
    """Everything a dry run found out.

    Attributes:
        backends: Backends of samples, in the order of the config.
        plan: The plan; None where there can be none.
        texts: Captions.
        cache: Identity of the cache's storage and the folder in it; holds no secret.
        free_bytes: Free space there; None where it cannot be told.
        problems: What to know before training, the gravest first.
    """

    backends: tuple[BackendSummary, ...]
    plan: PlanSummary | None
    texts: CaptionSummary
    cache: str
    free_bytes: int | None
    problems: tuple[Problem, ...]

    @property
    def trainable(self) -> bool:
        """Tell whether nothing keeps the run from training."""
        return not any(problem.level == "stop" for problem in self.problems)

    @property
    def conditioned(self) -> bool:
        """Tell whether any backend has image embeddings to condition on."""
        return any(each.costs.image_embeds_bytes != 0 for each in self.backends)

    @property
    def cache_bytes(self) -> int | None:
        """Space needed in the cache for all that is encoded; None where it cannot be told."""
        parts = [each.costs.latents_bytes for each in self.backends]
        parts += [each.costs.image_embeds_bytes for each in self.backends] + [self.texts.bytes]
        return None if None in parts else sum(part or 0 for part in parts)

    def as_json(self) -> dict[str, Any]:
        """Return the same as values for JSON."""
        return {
            "format": FORMAT,
            "trainable": self.trainable,
            "cache_bytes": self.cache_bytes,
            **asdict(self),
        }
