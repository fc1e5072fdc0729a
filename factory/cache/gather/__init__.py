"""Gathering rows of mapped shards into the tensors of a batch."""
