"""Dry run of a training run: what it would do with its data. See `factory/commands/plan.py`."""

from factory.commands.startup import run

if __name__ == "__main__":
    run("plan")
