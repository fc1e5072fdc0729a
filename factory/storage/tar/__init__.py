"""Tar shards, as WebDataset writes them, as a storage."""
