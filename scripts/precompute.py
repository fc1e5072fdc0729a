"""Encode what a run needs, and stop: `python scripts/precompute.py data=multi engine=ray`.

Takes the overrides of train.py: scans, decides, and encodes every picture and caption that the
cache lacks. Interrupted, it goes on where it was when it is started again. Exit status 0 means
that the run can be trained from the cache, 1 that something stops it, 130 an interrupt.
"""

from factory.commands import startup

# isort: split

import sys
from collections.abc import Sequence
from contextlib import closing

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from factory.commands import cli
from factory.config import compose
from factory.config.build import preflight, verify
from factory.demo.session import demo_session, promised

# Everything is in the cache: no run folder is left behind, and no log.
NO_FOLDER = (
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra.job_logging.root.handlers=[console]",
    "~hydra.job_logging.handlers.file",
)
# What a shell says of a command that was interrupted.
INTERRUPTED = 130

compose.register()


def main(arguments: Sequence[str]) -> None:
    """Encode, print what was done, and end with a status."""

    @hydra.main(version_base=compose.HYDRA_VERSION, config_path="../conf", config_name="config")
    def precompute(cfg: DictConfig) -> None:
        overrides = list(HydraConfig.get().overrides.task)
        with cli.advice(), promised(cfg):
            checked = verify(cfg, overrides)
        try:
            with cli.advice(), demo_session(cfg):
                preflight(checked, overrides)
                _encode(checked, overrides)
        except KeyboardInterrupt:
            print(
                "interrupted; shards that were published are kept, start again to go on",
                file=sys.stderr,
            )
            sys.exit(INTERRUPTED)

    if {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\nEverything is as for train.py:\n", flush=True)
    # Hydra reads its arguments from here, and wants all overrides in one row.
    overrides = [text for text in arguments if _is_override(text)]
    flags = [text for text in arguments if text not in overrides]
    sys.argv = [sys.argv[0], *flags, *overrides, *NO_FOLDER]
    cli.run(precompute, arguments)


def _is_override(text: str) -> bool:
    return text.startswith("~") or ("=" in text and not text.startswith("-"))


def _encode(cfg: DictConfig, overrides: list[str]) -> None:
    # Imported here: what is wrong with a config is said before torch has loaded.
    from factory.config.build import build
    from factory.reports.run import show_encoded

    data = build(cfg, overrides)
    with closing(data):
        data.prepare_data()
        show_encoded(data.registry.telemetry)


if __name__ == "__main__":
    startup.speak()
    main(sys.argv[1:])
