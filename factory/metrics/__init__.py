"""Measurements of a run: times and bytes of its stages."""
