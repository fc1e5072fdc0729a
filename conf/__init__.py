"""Config groups, found by Hydra as pkg://factory.conf where the package is installed."""
