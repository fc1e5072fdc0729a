"""Headers of picture formats, one a module, each read by hand from a window of first bytes."""
