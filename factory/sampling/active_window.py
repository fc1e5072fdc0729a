"""Active windows: the epochs and optimizer steps in which a backend takes part."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated

from factory.errors import PlanError
from factory.limits import AtLeast, Whole, check_limits


@dataclass(frozen=True)
class ActiveWindow:
    """The epochs and optimizer steps in which a backend takes part.

    Epochs and steps count from 1 as a person counts them, over the whole run, and both ends
    are included. A step is an optimizer step: gradient accumulation does not hurry it.

    Attributes:
        start_epoch: First epoch that draws from it, from 1.
        start_step: First optimizer step that draws from it, from 1; 0 means at once.
        end_epoch: Last epoch that draws from it; None means no end.
        end_step: Last optimizer step that draws from it; None means no end.
        fade_from_step: Optimizer step at which its weight begins to fall, if it fades.
        fade_to_step: Last optimizer step that draws from it, its weight falling until then; None:
            stays. It falls linearly: of F - S + 1 steps from S to F, the n-th has
            (F - S + 2 - n) / (F - S + 1) of the weight.
    """

    start_epoch: Annotated[int, Whole(), AtLeast(1)] = 1
    start_step: Annotated[int, Whole(), AtLeast(0)] = 0
    end_epoch: Annotated[int | None, Whole(), AtLeast(1)] = None
    end_step: Annotated[int | None, Whole(), AtLeast(1)] = None
    fade_from_step: Annotated[int, Whole(), AtLeast(0)] = 0
    fade_to_step: Annotated[int | None, Whole(), AtLeast(1)] = None

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            PlanError: A bound is no whole number, too small, or an end lies before its start.
        """
        check_limits(self, "window", PlanError)

    def setting_problems(self) -> Iterator[str]:
        """Yield which end lies before its start, and what a fade lacks."""
        for end, starts in (
            ("end_epoch", ("start_epoch",)),
            ("end_step", ("start_step",)),
            ("fade_to_step", ("fade_from_step", "start_step")),
        ):
            last = getattr(self, end)
            for start in starts:
                first = getattr(self, start)
                if last is not None and last < first:
                    yield f"{end} {last} comes before {start} {first}"
        if self.fade_to_step is None and self.fade_from_step > 0:
            yield (
                f"fade_from_step {self.fade_from_step} needs an end; set fade_to_step to the last "
                "step that draws from the backend"
            )

    def __str__(self) -> str:
        """Show the bounds that differ from "always", by name."""
        changed = (
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        )
        return ", ".join(changed) or "always"

    def active(self, epoch: int, step: int) -> bool:
        """Tell whether the backend takes part.

        Args:
            epoch: The epoch, from 1.
            step: Optimizer steps completed since the run began, so that the next is step + 1.
        """
        return self.in_epoch(epoch) and self.first_step <= step < self.steps_end(step + 1)

    def in_epoch(self, epoch: int) -> bool:
        """Tell whether the epoch, from 1, is inside the window."""
        return self.start_epoch <= epoch and (self.end_epoch is None or epoch <= self.end_epoch)

    @property
    def first_step(self) -> int:
        """The first optimizer step inside the window, counted from 0."""
        return max(self.start_step - 1, 0)

    def steps_end(self, never: int) -> int:
        """Return the first optimizer step after the window, from 0; `never` if it has no end."""
        ends = [end for end in (self.end_step, self.fade_to_step) if end is not None]
        return min(ends, default=never)

    @property
    def fade(self) -> tuple[int, int] | None:
        """The first step of the fade and the first step after it, from 0; None without one."""
        if self.fade_to_step is None:
            return None
        return max(self.fade_from_step - 1, 0), self.fade_to_step

    def factor(self, step: int) -> float:
        """Return what the fade leaves of the weight at an optimizer step, from 0: 0 to 1."""
        if self.fade is None:
            return 1.0
        start, end = self.fade
        return min(max((end - step) / (end - start), 0.0), 1.0)


def check_windows(
    windows: Mapping[str, ActiveWindow], *, epochs: int | None = None, steps: int | None = None
) -> None:
    """Refuse windows that leave the run's start empty or that the run can never reach.

    Args:
        windows: The windows of the backends to train on, by name.
        epochs: Epochs the run has; None if that is not known.
        steps: Optimizer steps the run has; None if that is not known.

    Raises:
        PlanError: No backend is active at the first step, or a window starts after the end.
    """
    if not any(window.active(1, 0) for window in windows.values()):
        shown = "; ".join(f"{name}: {window}" for name, window in windows.items()) or "none"
        raise PlanError(
            "at least one backend must be active at the start of training; set "
            "window.start_epoch=1 and window.start_step to 0 or 1 for one or more backends "
            f"(their windows: {shown})"
        )
    for name, window in windows.items():
        for key, start, end in (
            ("start_epoch", window.start_epoch, epochs),
            ("start_step", window.start_step, steps),
        ):
            if end is not None and start > end:
                raise PlanError(
                    f"backend {name!r} never takes part: window.{key}={start}, but the run ends "
                    f"at {end}; lower it, make the run longer, or remove the backend"
                )
