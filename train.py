"""Train on any mix of backends: `python train.py data=multi storage=s3`."""

from factory.commands import startup

# isort: split

import logging
import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from factory.commands import cli
from factory.config import compose
from factory.config.build import preflight, verify
from factory.demo.session import demo_session, promised

# Torch's threads spin while they wait, which on a busy machine takes the cores from each other
# (a run was seen to take many times as long). Read once, when torch loads; a setting of yours wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

compose.register()


@hydra.main(version_base=compose.HYDRA_VERSION, config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Build the backends, train the model, say what was done; return what sweepers minimise."""
    run = HydraConfig.get()
    overrides = list(run.overrides.task)
    with cli.advice(), promised(cfg):
        checked = verify(cfg, overrides)  # before the demo's data is written
    with cli.advice(), demo_session(cfg):
        preflight(checked, overrides)
        logging.getLogger("factory").info("config and storage are sound; loading torch")
        # Imported here: what is wrong with a config is said before torch has loaded.
        from factory.commands.train import train

        return train(checked, overrides, Path(run.runtime.output_dir))
    return None


if __name__ == "__main__":
    startup.speak()
    sys.argv[1:] = cli.continuing(sys.argv[1:])
    cli.run(main)
