"""Backends and plans for the tests of the sampling floor."""

import numpy as np
from hypothesis import strategies as st

from factory.sampling.active_window import ActiveWindow
from factory.sampling.passes import PlanBackend
from factory.sampling.plan import Plan, PlanStep


def backend(
    name: str = "a", sizes: tuple[int, ...] = (10,), first: int = 0, **settings
) -> PlanBackend:
    """A backend whose rows are first, first + 1, ... in buckets of the given sizes."""
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    order = np.arange(first, first + int(offsets[-1]), dtype=np.int64)
    buckets = tuple(f"{64 + 8 * number}x64" for number in range(len(sizes)))
    return PlanBackend(name, order, offsets, buckets, **settings)


def facts(step: PlanStep) -> tuple:
    """Everything a step says, comparable."""
    values = vars(step) | {"rows": tuple(step.rows.tolist())}
    return tuple(values.items())


def walk(plan: Plan, epoch: int) -> list[PlanStep]:
    """All steps of an epoch in order."""
    return [plan.at(epoch, step) for step in range(plan.steps(epoch))]


windows = st.builds(
    lambda start_epoch, epochs, start_step, steps: ActiveWindow(
        start_epoch,
        start_step,
        None if epochs is None else start_epoch + epochs,
        None if steps is None else max(start_step, 1) + steps,
    ),
    st.integers(1, 3),
    st.none() | st.integers(0, 2),
    st.integers(0, 20),
    st.none() | st.integers(0, 20),
)


@st.composite
def backends(draw, with_windows: bool = False) -> list[PlanBackend]:
    """One to four backends; the first takes part from the start and for ever."""
    made = []
    for number in range(draw(st.integers(1, 4))):
        sizes = tuple(draw(st.lists(st.integers(0, 17), min_size=1, max_size=4)))
        if sum(sizes) == 0:
            sizes = (*sizes, draw(st.integers(1, 17)))
        made.append(
            backend(
                f"b{number}",
                sizes,
                first=1000 * number,
                probability=draw(st.sampled_from([1.0, 0.3, 2.5, 0.05])),
                repeats=draw(st.integers(0, 2)),
                batch_size=draw(st.none() | st.integers(1, 7)),
                window=draw(windows) if with_windows and number else ActiveWindow(),
            )
        )
    return made
