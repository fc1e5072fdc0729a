"""Batches at training time: collate, prefetch and iterate in plan order."""
