"""Encode what a run needs, and stop: `python scripts/precompute.py data=multi engine=ray`.

Takes the overrides of train.py: scans, decides, and encodes every picture and caption that the
cache lacks. Interrupted, it goes on where it was when it is started again. Exit status 0 means
that the run can be trained from the cache, 1 that something stops it, 130 an interrupt.
"""

import sys
from collections.abc import Sequence
from contextlib import closing

from omegaconf import DictConfig

from factory.commands import cli
from factory.commands.startup import INTERRUPTED


@cli.hydra_main
def precompute(cfg: DictConfig) -> None:
    """Encode what the cache lacks, and print what was done."""
    try:
        with cli.session(cfg) as (checked, overrides):
            _encode(checked, overrides)
    except KeyboardInterrupt:
        print(
            "interrupted; shards that were published are kept, start again to go on",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)


def main(arguments: Sequence[str]) -> None:
    """Encode, print what was done, and end with a status."""
    if {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\nEverything is as for train.py:\n", flush=True)
    cli.run_task(precompute, arguments, *cli.NO_FOLDER)


def _encode(cfg: DictConfig, overrides: list[str]) -> None:
    # Imported here: what is wrong with a config is said before torch has loaded.
    from factory.config.build import build
    from factory.reports.run_report import show_encoded

    data = build(cfg, overrides)
    with closing(data):
        data.prepare_data()
        show_encoded(data.registry.telemetry)
