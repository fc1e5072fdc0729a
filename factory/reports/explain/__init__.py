"""Explanations of steps: which samples made up a step of a run, and why those."""
