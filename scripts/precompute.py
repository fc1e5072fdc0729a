"""Encode what a run needs, and stop. See `factory/commands/precompute.py`."""

from factory.commands.startup import run

if __name__ == "__main__":
    run("precompute")
