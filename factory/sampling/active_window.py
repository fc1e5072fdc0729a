"""Active windows: the epochs and optimizer steps in which a backend takes part."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from factory.errors import PlanError


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

    start_epoch: int = 1
    start_step: int = 0
    end_epoch: int | None = None
    end_step: int | None = None
    fade_from_step: int = 0
    fade_to_step: int | None = None

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            PlanError: A bound is no whole number, too small, or an end lies before its start.
        """
        self._check_whole("start_epoch", self.start_epoch, 1)
        self._check_whole("start_step", self.start_step, 0)
        if self.end_epoch is not None:
            self._check_whole("end_epoch", self.end_epoch, 1)
            self._check_order("end_epoch", self.end_epoch, "start_epoch", self.start_epoch)
        if self.end_step is not None:
            self._check_whole("end_step", self.end_step, 1)
            self._check_order("end_step", self.end_step, "start_step", self.start_step)
        self._check_fade()

    def _check_fade(self) -> None:
        self._check_whole("fade_from_step", self.fade_from_step, 0)
        if self.fade_to_step is None:
            if self.fade_from_step:
                raise PlanError(
                    f"window.fade_from_step={self.fade_from_step} needs window.fade_to_step, the "
                    "last step that draws from the backend; set it, or fade_from_step=0"
                )
            return
        self._check_whole("fade_to_step", self.fade_to_step, 1)
        for name in ("fade_from_step", "start_step"):
            self._check_order("fade_to_step", self.fade_to_step, name, getattr(self, name))

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

    @staticmethod
    def _check_whole(name: str, value: int, least: int) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            raise PlanError(f"window.{name} must be a whole number, got {value!r}")
        if value < least:
            optional = name.startswith("end") or name == "fade_to_step"
            unset = "; to set no end, leave it null" if optional else ""
            raise PlanError(f"window.{name} must be {least} or more, got {value}{unset}")

    @staticmethod
    def _check_order(end_name: str, end: int, start_name: str, start: int) -> None:
        if end < start:
            raise PlanError(f"window.{end_name} ({end}) must be >= window.{start_name} ({start})")


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
