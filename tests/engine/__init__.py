"""Engines: where bulk work runs."""
