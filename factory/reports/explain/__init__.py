"""Which samples made up a step of a run, and why those? Asked after the run, or during it."""
