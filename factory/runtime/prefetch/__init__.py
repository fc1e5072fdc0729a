"""Batches made ahead of the trainer, in threads or in a worker process, and moved to its device."""
