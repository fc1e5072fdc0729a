"""Import of a SimpleTuner config: turns its `multidatabackend.json` into options."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from factory.errors import ConfigError
from factory.importers.simpletuner.convert import Launch, convert
from factory.importers.simpletuner.dataset_names import option_name
from factory.importers.simpletuner.document import read_arguments, read_entries
from factory.importers.simpletuner.files import Import, write
from factory.importers.simpletuner.output import show
from factory.untrusted_text import printable


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Turn a SimpleTuner multidatabackend.json into one option file per dataset "
        "and a data option that runs them together. Secrets are never written."
    )
    parser.add_argument("config", type=Path, help="the multidatabackend.json")
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        default=Path("myconf"),
        metavar="DIR",
        help="folder of configs to write into (default: %(default)s)",
    )
    add("--name", help="name of the data option (default: the file's)")
    add("--args", type=Path, metavar="FILE", help="the trainer's config.json, for its defaults")
    add(
        "--gpus",
        type=int,
        default=1,
        metavar="N",
        help="GPUs upstream trained on: its train_batch_size is per GPU (default: %(default)s)",
    )
    add(
        "--accumulation",
        type=int,
        metavar="N",
        help="batches per optimizer step (default: gradient_accumulation_steps of --args, or 1)",
    )
    add(
        "--batch-size",
        type=int,
        metavar="N",
        help="data.batch_size itself (default: train_batch_size x GPUs x accumulation)",
    )
    add("--no-path-checks", action="store_true", help="do not look if local folders exist")
    add("--force", action="store_true", help="replace files that are there")
    add("--all", action="store_true", help="show what came of every key")
    return parser.parse_args(arguments)  # fmt: skip


def run(given: argparse.Namespace) -> int:
    """Read, convert, show and write; return the exit status."""
    conversion = convert(
        read_entries(given.config),
        read_arguments(given.args) if given.args else {},
        Launch(given.gpus, given.accumulation, given.batch_size),
        paths=not given.no_path_checks,
    )
    name = option_name(given.config.stem) if given.name is None else given.name
    made = Import(name, given.config.name, conversion)
    show(made, every=given.all)
    if not conversion.is_trainable:
        print("Nothing written: no dataset that can be trained on here is left", file=sys.stderr)
        return 1
    written = write(made, given.out, force=given.force)
    print(f"\nWrote {len(written)} files; the whole report is {written[-1]}\nRun it with:\n")
    for line in [*made.exports, made.command(str(given.out))]:
        print(f"  {line}")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Import; return the exit status."""
    try:
        return run(parse(arguments))
    except ConfigError as error:
        print(printable(f"Import refused: {error}", keep="\n"), file=sys.stderr)
        return 1
