"""Dry run: `python scripts/plan.py data=multi` says what a run would do with its data.

Scans, decides and plans, but encodes and trains nothing. Exit status 0 means that the run can
be trained, 1 that something stops it.
"""

import argparse
import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from factory.commands import cli
from factory.reports.preview.summary import RunLimits


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return this command's own options, and what is left for Hydra."""
    parser = argparse.ArgumentParser(
        prog="plan.py", description=__doc__, add_help=False, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    cli.add_outputs(parser, "numbers")
    parser.add_argument(
        "--ranks", type=int, metavar="N",
        help="processes that share each batch; trainer.devices x num_nodes if not given",
    )  # fmt: skip
    given, rest = parser.parse_known_args(arguments)
    if given.ranks is not None and given.ranks < 1:
        parser.error(f"--ranks must be at least 1, got {given.ranks}")
    cli.check_outputs(parser, given)
    if {"-h", "--help"} & set(rest):
        parser.print_help()
        print("\nEverything else is as for train.py:\n", flush=True)
    return given, rest


def main(arguments: Sequence[str]) -> None:
    """Plan, print, write the files asked for, and end with a status."""
    options, rest = parse(arguments)

    @cli.hydra_main
    def plan(cfg: DictConfig) -> None:
        with cli.session(cfg) as (checked, overrides):
            trainable = _preview(checked, overrides, options)
        sys.exit(0 if trainable else 1)

    # Tables are shown instead of log lines.
    cli.run_task(plan, rest, *cli.NO_FOLDER, "hydra.job_logging.root.level=WARNING")


def _preview(cfg: DictConfig, overrides: list[str], options: argparse.Namespace) -> bool:
    # Imported here: what is wrong with a config is said before torch has loaded.
    from factory.config.build import build
    from factory.reports.preview.dry_run import preview_run
    from factory.reports.preview.page import page
    from factory.reports.preview.terminal import show

    data = build(cfg, overrides)
    try:
        result = preview_run(data, run_of(cfg, options.ranks))
        show(result.summary)
        engine = data.registry.engine.here
        cli.write_outputs(options, result.summary.as_json(), lambda: page(result, engine))
    finally:
        data.close()
    return result.summary.trainable


def run_of(cfg: DictConfig, ranks: int | None) -> RunLimits:
    """Return what the trainer's settings say about the run."""
    trainer = cfg.trainer
    devices = trainer.get("devices")
    if ranks is None:
        # "auto" and lists are counted on the machine that trains.
        ranks = devices * (trainer.get("num_nodes") or 1) if isinstance(devices, int) else 1
    limits = [trainer.get(name) for name in ("max_steps", "max_epochs")]
    # Lightning's -1 means no limit.
    steps, epochs = (limit if limit is not None and limit >= 0 else None for limit in limits)
    sharing = max(ranks // cfg.data.context_parallel, 1)  # others get the same samples
    return RunLimits(steps, epochs, sharing, trainer.get("accumulate_grad_batches") or 1)
