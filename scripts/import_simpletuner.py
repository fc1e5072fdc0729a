"""Import of a SimpleTuner config. See `factory/commands/import_simpletuner.py`."""

from factory.commands.startup import run

if __name__ == "__main__":
    run("import_simpletuner")
