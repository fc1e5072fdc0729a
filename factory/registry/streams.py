"""The streams of a run by name: opened, and where each resumes in an epoch."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from factory.backends.streaming.source import StreamSource
from factory.errors import ResumeError
from factory.registry.plan_inputs import plan_stream
from factory.registry.registry import Registry
from factory.sampling.passes import PlanBackend
from factory.sampling.plan import Plan


class Streams(dict[str, StreamSource]):
    """The streams of a run, by name."""

    def open(self, registry: Registry, *, batch_size: int, seed: int) -> None:
        """Open those of a registry that are not open yet."""
        for name, backend in registry.streams.items():
            if name in self:
                continue
            source = StreamSource(
                backend,
                batch_size=backend.batch_size or batch_size,
                seed=seed,
                latents=registry.image_store(backend),
                text=registry.text_store(backend),
                vision=registry.vision_store(backend),
            )
            with registry.telemetry.stage(f"open {name}") as record:
                record.counts["batches in a pass"] = source.batches_per_pass()
            self[name] = source

    def planned(self, name: str, batch_size: int) -> PlanBackend:
        """Return what the plan must know of one."""
        return plan_stream(self[name], batch_size)

    def given(self, plan: Plan, epoch: int, step: int) -> dict[str, int]:
        """Return how many batches each gives in an epoch before a step."""
        # Nothing before the first; and the epoch after a run's last one cannot be asked.
        given = plan.given(epoch, step) if self and step else {}
        return {name: given.get(name, 0) for name in self}

    def end_epoch(self, plan: Plan, epoch: int, step: int) -> None:
        """Note that an epoch ended after so many steps."""
        given = self.given(plan, epoch, step)
        for name, stream in self.items():
            stream.end_epoch(epoch, given[name])

    def state_dict(self, plan: Plan, epoch: int, step: int) -> dict[str, Any]:
        """Return where each goes on after so many steps of an epoch, as plain values."""
        given = self.given(plan, epoch, step)
        return {name: stream.state_dict(epoch, given[name]) for name, stream in self.items()}

    def load_state_dict(
        self, states: Mapping[str, Any], plan: Plan, epoch: int, step: int, *, same_plan: bool
    ) -> None:
        """Go on from states, each at its batch that comes next.

        Args:
            states: What `state_dict` returned.
            plan: The plan of now.
            epoch: The epoch the run stands in.
            step: The steps of it that are completed.
            same_plan: Whether the states are of this very plan.

        Raises:
            ResumeError: One is missing, though its plan has the stream.
        """
        missing = sorted(self.keys() - states.keys())
        if missing and same_plan:
            raise ResumeError(
                f"the checkpoint's data state is damaged: it says nothing of {', '.join(missing)}, "
                "which are streams of its plan; take another checkpoint"
            )
        # A plan that was changed may have shorter epochs.
        given = self.given(plan, epoch, min(step, plan.steps(epoch)) if self and step else 0)
        for name, stream in self.items():
            stream.load_state_dict(states.get(name), epoch, given[name])

    def pause(self) -> None:
        """Let go of what is read."""
        with ExitStack() as stack:
            for stream in self.values():
                stack.callback(stream.pause)

    def close(self) -> None:
        """Let go of all that is open."""
        with ExitStack() as stack:
            for stream in self.values():
                stack.callback(stream.close)
