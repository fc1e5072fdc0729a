"""Which samples a step of a run used, and why. See `factory/commands/explain.py`."""

from factory.commands.startup import run

if __name__ == "__main__":
    run("explain")
