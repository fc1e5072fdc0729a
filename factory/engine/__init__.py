"""Engines of bulk work: reading, decoding and encoding many samples at once."""
