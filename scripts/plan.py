"""What would a run do with its data? `python scripts/plan.py data=multi`, as for train.py.

Scans, decides and plans, but encodes and trains nothing. Exit status 0 means that the run can
be trained, 1 that something stops it.
"""

from factory.commands import startup

# isort: split

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from factory.commands import cli
from factory.config import compose
from factory.config.build import preflight, verify
from factory.demo.session import demo_session, promised
from factory.reports.preview.summary import RunLimits
from factory.untrusted_text import json_text

# A dry run leaves no run folder and no log behind, and shows its tables instead of log lines.
QUIET = (
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra.job_logging.root.handlers=[console]",
    "hydra.job_logging.root.level=WARNING",
    "~hydra.job_logging.handlers.file",
)

compose.register()


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return this script's own options, and what is left for Hydra."""
    parser = argparse.ArgumentParser(
        prog="plan.py", description=__doc__, add_help=False, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page to look at")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers as JSON")
    parser.add_argument(
        "--ranks", type=int, metavar="N",
        help="processes that share each batch; trainer.devices x num_nodes if not given",
    )  # fmt: skip
    given, rest = parser.parse_known_args(arguments)
    if given.ranks is not None and given.ranks < 1:
        parser.error(f"--ranks must be at least 1, got {given.ranks}")
    for file in (given.html, given.json):
        if file is not None and not file.absolute().parent.is_dir():
            parser.error(f"{file}: there is no folder {file.parent}; make it first")
    if {"-h", "--help"} & set(rest):
        parser.print_help()
        print("\nEverything else is as for train.py:\n", flush=True)
    return given, rest


def main(arguments: Sequence[str]) -> None:
    """Plan, print, write the files asked for, and end with the verdict."""
    options, rest = parse(arguments)

    @hydra.main(version_base=compose.HYDRA_VERSION, config_path="../conf", config_name="config")
    def plan(cfg: DictConfig) -> None:
        overrides = list(HydraConfig.get().overrides.task)
        with cli.advice(), promised(cfg):
            checked = verify(cfg, overrides)
        with cli.advice(), demo_session(cfg):
            preflight(checked, overrides)
            trainable = _dry_run(checked, overrides, options)
        sys.exit(0 if trainable else 1)

    # Hydra reads its arguments from here, and wants all overrides in one row.
    overrides = [text for text in rest if text[0] == "~" or ("=" in text and text[0] != "-")]
    flags = [text for text in rest if text not in overrides]
    sys.argv = [sys.argv[0], *flags, *overrides, *QUIET]
    cli.run(plan, rest)


def _dry_run(cfg: DictConfig, overrides: list[str], options: argparse.Namespace) -> bool:
    # Imported here: what is wrong with a config is said before torch has loaded.
    from factory.config.build import build
    from factory.reports.preview.dry_run import preview_run
    from factory.reports.preview.terminal import show

    data = build(cfg, overrides)
    try:
        result = preview_run(data, run_of(cfg, options.ranks))
        show(result.summary)
        if options.json:
            text = json_text(result.summary.as_json(), indent=1)
            options.json.write_text(text + "\n", encoding="utf-8")
        if options.html:
            from factory.reports.preview.page import page

            options.html.write_text(page(result, data.registry.engine.here), encoding="utf-8")
            print(f"wrote {options.html}")
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


if __name__ == "__main__":
    startup.speak()
    main(sys.argv[1:])
