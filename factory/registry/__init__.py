"""The registry: what was built, in which order, and how it is made ready."""
