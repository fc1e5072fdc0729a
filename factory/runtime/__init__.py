"""Batches at training time: made, prefetched, and watched across ranks."""
