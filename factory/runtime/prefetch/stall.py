"""What does everybody do, when no batch comes?"""

import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from factory.runtime.prefetch.future import Ticket

# Named one by one; a long queue would bury the rest of the report.
SHOWN = 8


def stages(
    tickets: Sequence[Ticket[Any, Any]],
    describe: Callable[[Any], str],
    delivered: int,
    paused: bool,
) -> str:
    """Return what is waiting, in the making, ready and delivered, a line each."""
    waiting = [t for t in tickets if not t.done and t.begun is None]
    making = [t for t in tickets if not t.done and t.begun is not None]
    ready = [t for t in tickets if t.done]
    held = sum(ticket.nbytes for ticket in ready)
    lines = [
        f"wait for a worker: {_listed(waiting, describe)}",
        f"in the making: {_listed(making, describe)}",
        f"ready: {_listed(ready, describe)}" + (f" ({held / 2**20:.1f} MiB)" if ready else ""),
        f"delivered: {delivered}",
    ]
    if paused:
        lines.append("paused: no further batch is begun until resume()")
    return "\n".join(f"  {line}" for line in lines)


def _listed(tickets: Sequence[Ticket[Any, Any]], describe: Callable[[Any], str]) -> str:
    if not tickets:
        return "none"
    names = []
    for ticket in tickets[:SHOWN]:
        age = None if ticket.done else ticket.age()
        name = "an error of the plan" if ticket.stage == "planning" else describe(ticket.job)
        names.append(name + ("" if age is None else f" (for {age:.1f} s)"))
    more = f"; {len(tickets) - SHOWN} more" if len(tickets) > SHOWN else ""
    return f"{len(tickets)}: " + "; ".join(names) + more


def stacks() -> str:
    """Return what each thread of this process does, but for the one that asks."""
    frames = sys._current_frames()  # noqa: SLF001 - documented, in spite of its name
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in frames.items():
        if ident != threading.get_ident():
            stack = "".join(traceback.format_stack(frame))
            parts.append(f"--- {names.get(ident, f'thread {ident}')}\n{stack}")
    return "\n".join(parts)
