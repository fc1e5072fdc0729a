"""The LightningDataModule and what a run restores: loaders, position, checkpoints."""
