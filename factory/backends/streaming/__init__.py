"""Streaming backends: samples read in order, bucketed as they come."""
