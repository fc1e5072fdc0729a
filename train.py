"""Train on any mix of backends: `python train.py data=multi storage=s3`."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from factory import cli, composer

composer.register()


@hydra.main(version_base=composer.HYDRA_VERSION, config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Build the backends, train the model, and say what was done."""
    # Imported here, so that --help and shell completion need no torch.
    from factory.demo.session import demo_session
    from factory.training import train

    run = HydraConfig.get()
    with cli.advice(), demo_session(cfg):
        train(cfg, list(run.overrides.task), Path(run.runtime.output_dir))


if __name__ == "__main__":
    cli.run(main)
