"""One process of a run that is watched, without Lightning: started by the tests of monitor."""

import os
import signal
import time

import torch
import torch.distributed as dist

from factory.runtime.distributed.rank_monitor import monitor_ranks
from factory.runtime.prefetch.activity import ActivityTracker


def main(timeout_s: float, trouble: dict[str, str]) -> None:
    """Train with collectives; at the fourth step do what `trouble` says of this rank."""
    dist.init_process_group("gloo")
    rank, progress = dist.get_rank(), ActivityTracker()

    def exchange(given: str) -> str:
        told = [given]
        dist.broadcast_object_list(told)
        return told[0]

    monitor = monitor_ranks(exchange, timeout_s, progress, several_nodes=False)
    assert monitor is not None
    try:
        for step in range(6):
            progress.say("training", f"step {step}")
            if step == 3 and trouble.get(str(rank)) == "interrupt":
                monitor.interrupt()
                while monitor.failure is None:  # as one that saves a checkpoint meanwhile
                    time.sleep(0.01)
                break
            if step == 3:
                act(trouble.get(str(rank), ""), timeout_s)
            dist.all_reduce(torch.zeros(4))
    except BaseException as error:
        failure = monitor.fail(error)
        if failure is not None:
            error.add_note(f"because {failure}")
        raise
    monitor.close()


def act(trouble: str, timeout_s: float) -> None:
    """Get into trouble."""
    if trouble == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif trouble == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif trouble == "raise":
        raise ValueError("no good")
    elif trouble == "slow":
        time.sleep(3 * timeout_s)
    elif trouble == "python":
        while True:  # waits in Python, for something that never comes
            time.sleep(0.01)
