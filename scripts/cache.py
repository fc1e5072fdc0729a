"""What is in the cache, is it sound, and is it where it is needed?

  python scripts/cache.py du                what is held, by store, recipe and bucket; tiers
  python scripts/cache.py verify            compare every file and row with its checksum
  python scripts/cache.py gc --dry-run      what nothing needs any more; without it, remove that
  python scripts/cache.py compact           merge thin shards into full ones
  python scripts/cache.py why KEY           what makes a sample's row differ from those stored
  python scripts/cache.py push --to FOLDER  copy what another cache lacks; pull --from the other way

Other arguments change options, as for train.py. The other cache is a folder, or options such as
--to storage=s3 --to paths.bucket=tensors that change this run's. Exit status 0 means that all is
well, 1 that something is wrong, 2 that the command or the config is.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from factory import cli, composer
from factory.demo.session import demo_session, promised
from factory.errors import ConfigError, FactoryError

if TYPE_CHECKING:
    from factory.cache.place import CachePlace
    from factory.datamodule import FactoryDataModule

# Torch's threads spin while they wait; nothing here needs them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SOUND, PROBLEMS, USAGE = 0, 1, 2
_MINUTE_S = 60.0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the command with its options, overrides of the config among them."""
    parser = argparse.ArgumentParser(
        prog="cache.py", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    doors = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        door = doors.add_parser(name, allow_abbrev=False)
        door.add_argument("--store", metavar="NAME", help="this backend's tensors alone")
        if name == "gc":
            door.add_argument("--dry-run", action="store_true", help="remove nothing")
            door.add_argument(
                "--min-age", type=float, default=60.0, metavar="MINUTES",
                help="leave what has been of no use for less; runs may still read it",
            )  # fmt: skip
        if name == "why":
            door.add_argument("key", metavar="KEY", help="storage key of a sample, or a caption")
        if name in ("push", "pull"):
            other = "--to" if name == "push" else "--from"
            door.add_argument(
                other, dest="other", action="append", required=True, metavar="CACHE",
                help="a folder, or an override; may be given several times",
            )  # fmt: skip
            door.add_argument("--dry-run", action="store_true", help="copy nothing")
    given, overrides = parser.parse_known_args(arguments)
    if unknown := [text for text in overrides if "=" not in text and text[0] not in "~+"]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    given.overrides = overrides
    return given


def main(arguments: Sequence[str]) -> int:
    """Run one command; return the exit status."""
    options = parse(arguments)
    composer.register()
    try:
        cfg = composer.compose(options.overrides)
        with promised(cfg), ExitStack() as stack:
            data = _built(options.overrides)
            stack.callback(data.close)
            stack.enter_context(demo_session(cfg))
            return COMMANDS[options.command](data, options)
    except ConfigError as error:
        print(cli.describe(error), file=sys.stderr)
        return USAGE
    except FactoryError as error:
        print(cli.describe(error), file=sys.stderr)
        return PROBLEMS


def _built(overrides: Sequence[str]) -> "FactoryDataModule":
    # Imported here: what is wrong with a command is said before torch has loaded.
    from factory.builder import build

    return build(composer.compose(overrides), overrides)


def _stores(data: "FactoryDataModule", options: argparse.Namespace) -> dict[str, Any]:
    """Return the stores that are meant, by the name of their backend."""
    registry = data.registry
    embeds = {**registry.image_embeds, **registry.text_embeds}
    if options.store is not None and options.store not in embeds:
        raise ConfigError(
            f"--store {options.store!r} is no backend of embeddings of this config; there are "
            f"{', '.join(embeds) or 'none'}"
        )
    chosen = embeds if options.store is None else {options.store: embeds[options.store]}
    return {name: backend.store for name, backend in chosen.items()}


def _du(data: "FactoryDataModule", options: argparse.Namespace) -> int:
    from factory.cache.usage import usage
    from factory.report_cache import show_usage

    found = {name: usage(store) for name, store in _stores(data, options).items()}
    show_usage(found, data.registry.cache.storage.identity)
    return SOUND


def _verify(data: "FactoryDataModule", options: argparse.Namespace) -> int:
    from factory.cache.upkeep import verify
    from factory.report_cache import show_problems

    found = {name: verify(store) for name, store in _stores(data, options).items()}
    show_problems(found)
    return PROBLEMS if any(found.values()) else SOUND


def _gc(data: "FactoryDataModule", options: argparse.Namespace) -> int:
    from factory.cache.garbage import collect, garbage
    from factory.report_cache import show_garbage

    if options.min_age < 0:
        raise ConfigError(f"--min-age must be at least 0, got {options.min_age:g}")
    found = {
        name: garbage(store) if options.dry_run else collect(store, options.min_age * _MINUTE_S)
        for name, store in _stores(data, options).items()
    }
    show_garbage(found, removed=not options.dry_run, min_age_s=options.min_age * _MINUTE_S)
    return SOUND


def _compact(data: "FactoryDataModule", options: argparse.Namespace) -> int:
    from factory.cache.compaction import compact
    from factory.report_cache import show_problems

    problems, moved = {}, 0
    for name, store in _stores(data, options).items():
        done = compact(store)
        print(f"{name}: {done}" if done.rows else f"{name}: nothing to merge")
        moved += done.rows
        if done.problems:
            problems[name] = done.problems
    if moved:
        print("the shards they lay in are removed by `gc`, once runs under way have moved on")
    show_problems(problems)
    return PROBLEMS if problems else SOUND


def _why(data: "FactoryDataModule", options: argparse.Namespace) -> int:
    from factory.preparation import survey
    from factory.report_cache import reasons, show_reasons

    sources, _ = survey(data.registry, seed=data.seed)
    found = reasons(sources, data.registry.text_embeds, options.key)
    if not found:
        raise ConfigError(
            f"{options.key!r} is the storage key of no sample of this config, and there is no "
            "backend of captions to look for it as a caption"
        )
    show_reasons(options.key, found)
    return SOUND


def _push(data: "FactoryDataModule", options: argparse.Namespace) -> int:
    return _transfer(data, options, outwards=True)


def _pull(data: "FactoryDataModule", options: argparse.Namespace) -> int:
    return _transfer(data, options, outwards=False)


def _transfer(data: "FactoryDataModule", options: argparse.Namespace, *, outwards: bool) -> int:
    from factory.cache.transfer import compare, copy
    from factory.report_cache import show_transfers

    other = _other_place(data.registry.cache, options.overrides, options.other)
    done = {}
    with closing(other.storage):
        for name, store in _stores(data, options).items():
            ends = (store, other.store(name)) if outwards else (other.store(name), store)
            done[name] = compare(*ends)
            if not options.dry_run:
                copy(*ends, done[name])
    show_transfers(done, dry_run=options.dry_run, to=(other if outwards else data.registry.cache))
    return PROBLEMS if any(each.problems for each in done.values()) else SOUND


def _other_place(
    here: "CachePlace", overrides: Sequence[str], given: Sequence[str]
) -> "CachePlace":
    """Return the other cache, a folder or the one that other options lead to."""
    from factory.builder import make
    from factory.storage.local import LocalStorage

    folders = [text for text in given if "=" not in text]
    if len(folders) > 1 or (folders and len(given) > 1):
        raise ConfigError(f"give one folder, or overrides alone; got {', '.join(given)}")
    if folders:
        other = replace(here, storage=LocalStorage(folders[0]))
    else:
        other = make(composer.compose([*overrides, *given]).cache, "cache")
    if (other.storage.identity, other.prefix) == (here.storage.identity, here.prefix):
        raise ConfigError(
            f"the other cache is this one, {here.storage.identity}; name another folder, or "
            "options that lead elsewhere, such as storage=s3"
        )
    return other


COMMANDS: dict[str, Callable[["FactoryDataModule", argparse.Namespace], int]] = {
    "du": _du, "verify": _verify, "gc": _gc, "compact": _compact, "why": _why,
    "push": _push, "pull": _pull,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
