"""Train on any mix of backends: `python train.py data=multi storage=s3`."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from factory.commands import cli


@cli.hydra_main
def run(cfg: DictConfig) -> float | None:  # None where an error ended it
    """Build the backends, train the model, say what was done; return what sweepers minimise."""
    with cli.session(cfg) as (checked, overrides):
        logging.getLogger("factory").info("config and storage are sound; loading torch")
        # Imported here: what is wrong with a config is said before torch has loaded.
        from factory.commands.training_run import train

        return train(checked, overrides, Path(HydraConfig.get().runtime.output_dir))


def main(arguments: Sequence[str]) -> None:
    """Train, with the options of the run that is continued if there is one."""
    sys.argv[1:] = cli.continuing(arguments)
    cli.run(run)
