"""The cache: what it holds, whether it is sound, and copies of it elsewhere.

  python scripts/cache.py du                 what is held, by store, recipe and bucket; tiers
  python scripts/cache.py verify             compare every file and row with its checksum
  python scripts/cache.py gc --dry-run       what nothing needs any more; without it, remove that
  python scripts/cache.py compact            merge thin shards into full ones
  python scripts/cache.py why KEY            what makes a sample's row differ from those stored
  python scripts/cache.py push --to CACHE    copy what another cache lacks
  python scripts/cache.py pull --from CACHE  copy what this one lacks

Other arguments change options, as for train.py: storage=s3, data=multi, --config-dir DIR.
Exit status 0 means that all is well, 1 that something is wrong, 2 that the command or the
config is, 130 an interrupt.
"""

import argparse
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig

from factory.commands import cli
from factory.commands.startup import DEBUG, INTERRUPTED
from factory.config import compose
from factory.demo.session import demo_session, wants_s3_server
from factory.errors import CacheError, ConfigError, FactoryError
from factory.untrusted_text import PrintableFormatter

if TYPE_CHECKING:
    from factory.cache.store import TensorStore
    from factory.lightning.datamodule import FactoryDataModule
    from factory.workspace import Workspace


# Exit statuses.
SOUND, PROBLEMS, USAGE = 0, 1, 2
_MINUTE_S = 60.0
# What names a folder for sure, whatever signs follow.
_FOLDER = re.compile(r"\.{0,2}/|~/|file://")
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_OTHER = """
CACHE is one of
  FOLDER             such as /mnt/team; the cache lies below, in the folder cache.prefix
  s3://BUCKET/PATH   a bucket, on S3_ENDPOINT_URL if that is set
  KEY=VALUE ...      options that lead from this run's cache to the other, each after a flag
                     of its own, such as --{flag} storage=s3 --{flag} storage.bucket=tensors
Credentials are read from the environment, as for train.py storage=s3.
"""
_ELSEWHERE = (
    "scripts/precompute.py with the same options fills it; if it lies elsewhere, correct storage, "
    "storage.root (DATA_DIR) or storage.bucket (DATA_BUCKET), or cache.prefix"
)
_RESUMES = """
What is there already is not sent again, so that a command that was stopped goes on when it is
given once more. Every shard is compared with its checksums before it is written; --verify
compares those that are there already, too, and replaces what is damaged.
"""


class Command(NamedTuple):
    """One command.

    Attributes:
        run: Does it; returns the exit status.
        usage: What may follow its name.
        summary: What it does, in a line.
        details: What more there is to know.
    """

    run: "Callable[[FactoryDataModule, argparse.Namespace], int]"
    usage: str
    summary: str
    details: str = ""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the command with its options, overrides of the config among them."""
    parser = argparse.ArgumentParser(
        prog="cache.py", description=__doc__, allow_abbrev=False, add_help=False,
        usage="cache.py COMMAND [OPTION ...] [KEY=VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "-h", "--help", action="help",
        help="show this; after a command, what it takes",
    )  # fmt: skip
    doors = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS
    )
    for name in COMMANDS:
        _add(doors, name)
    if not arguments:
        parser.print_help(sys.stderr)
        sys.exit(USAGE)
    given, rest = parser.parse_known_args(arguments)
    given.overrides = [text for text in rest if "=" in text or text[:1] in ("~", "+")]
    if unknown := [text for text in rest if text not in given.overrides or text.startswith("-")]:
        doors.choices[given.command].error(
            f"unrecognized arguments: {' '.join(map(repr, unknown))}; options of the config are "
            "KEY=VALUE, as for train.py"
        )
    return given


def _add(doors: Any, name: str) -> None:
    """Add a command to the parser."""
    command = COMMANDS[name]
    door = doors.add_parser(
        name, allow_abbrev=False, prog=f"cache.py {name}", usage=f"cache.py {name} {command.usage}",
        description=command.summary, epilog=command.details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    if name == "why":
        door.add_argument("key", metavar="KEY", help="storage key of a sample, or a caption")
    else:
        door.add_argument("--store", metavar="NAME", help="this store alone, such as latents")
    if name == "gc":
        door.add_argument(
            "--min-age", type=float, default=60.0, metavar="MINUTES",
            help="leave what has been of no use for less, %(default)g if not given: runs may "
            "still read it",
        )  # fmt: skip
    if name in ("push", "pull"):
        door.add_argument(
            "--to" if name == "push" else "--from", dest="other", action="append", required=True,
            metavar="CACHE", help="the other cache, see below",
        )  # fmt: skip
        door.add_argument(
            "--verify", action="store_true",
            help="compare shards that are there already, too, and replace damaged ones; reads all",
        )  # fmt: skip
    if name in ("gc", "push", "pull"):
        door.add_argument("--dry-run", action="store_true", help="say what would be done; do not")
    door.add_argument(
        "--config-dir", "-cd", metavar="DIR", help="folder of your own configs, as for train.py"
    )


def main(arguments: Sequence[str]) -> int:
    """Run one command; return the exit status."""
    options = parse(arguments)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        cfg = compose.compose(options.overrides, config_dir=options.config_dir)
        _refuse_own_server(cfg, "storage=s3")
        with ExitStack() as stack:
            if options.command == "why":  # no other command looks at samples
                stack.enter_context(demo_session(cfg))
            data = _built(cfg, options.overrides)
            stack.callback(data.close)
            return COMMANDS[options.command].run(data, options)
    except KeyboardInterrupt:
        print("interrupted; what was done stays, and the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except FactoryError as error:
        if os.environ.get(DEBUG) == "1":
            raise
        print(cli.describe(error), file=sys.stderr)
        return USAGE if isinstance(error, ConfigError) else PROBLEMS


def _built(cfg: DictConfig, overrides: Sequence[str]) -> "FactoryDataModule":
    # Imported here: what is wrong with a command is said before torch has loaded.
    from factory.config.build import build

    return build(cfg, overrides)


def _refuse_own_server(cfg: DictConfig, given: str) -> None:
    """Refuse the S3 server that a run of the demo starts for itself: it would be empty."""
    if wants_s3_server(cfg):
        raise ConfigError(
            f"{given} names no bucket: set DATA_BUCKET (or storage.bucket=NAME), {_KEYS}, and "
            "S3_ENDPOINT_URL for a server other than AWS; `python scripts/demo_s3.py` starts one "
            "and prints what to set (a server that train.py starts for itself ends with its run)"
        )


def _stores(
    data: "FactoryDataModule", options: argparse.Namespace, *places: "Workspace"
) -> "dict[str, TensorStore]":
    """Return the stores that are meant, by name: the config's, and those of its pixels.

    Args:
        data: The config's backends.
        options: Says which are meant.
        places: Where else to look for stores; in the config's cache in any case.
    """
    from factory.reports.cache_usage import held

    registry = data.registry
    here = registry.cache
    embeds = {**registry.image_embeds, **registry.text_embeds, **registry.vision_embeds}
    stores = {name: backend.store for name, backend in embeds.items()}
    found = sorted(set().union(*(held(place) for place in (here, *places))) - stores.keys())
    if options.store is None:
        own = [name for name in found if name in registry.samples]
        return {**stores, **{name: here.store(name) for name in own}}
    if options.store in found:  # another config's
        return {options.store: here.store(options.store)}
    if options.store not in stores:
        raise ConfigError(
            f"--store {options.store!r}: this config and its cache have no such store; there are "
            f"{', '.join([*stores, *found]) or 'none'}"
        )
    return {options.store: stores[options.store]}


def _filled(data: "FactoryDataModule", options: argparse.Namespace) -> "dict[str, TensorStore]":
    """Return the stores that are meant, of which at least one holds something.

    Raises:
        CacheError: There is no cache.
        StorageError: Its storage does not answer.
    """
    from factory.reports.cache_usage import is_empty

    here = data.registry.cache
    here.storage.check()
    stores = _stores(data, options)
    if all(is_empty(store) for store in stores.values()):
        raise _no_cache(here, stores, _ELSEWHERE)
    return stores


def _no_cache(place: "Workspace", stores: "dict[str, TensorStore]", advice: str) -> CacheError:
    from factory.reports.wording import place as shown

    where = shown(place.storage.identity, place.prefix)
    return CacheError(f"nothing of {', '.join(stores)} is stored in {where}; {advice}")


def _du(data: "FactoryDataModule", options: argparse.Namespace) -> int:
    from factory.reports.cache import show_usage
    from factory.reports.cache_usage import held, usage

    here = data.registry.cache
    stores = _filled(data, options)
    found = {name: usage(store) for name, store in stores.items()}
    others = {name: size for name, size in held(here).items() if name not in stores}
    show_usage(found, here, {} if options.store else others)
    return SOUND


@contextmanager
def _log_level(name: str, level: int) -> Iterator[None]:
    """Have a logger show what is of a level, for the length of the `with` block."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def _verify(data: "FactoryDataModule", options: argparse.Namespace) -> int:
    from factory.cache.maintenance.verify import inspect
    from factory.reports.cache import show_findings

    # What it warns of is told below, and all of it.
    with _log_level("factory.cache.index.snapshot", logging.ERROR):
        found = {name: inspect(store) for name, store in _filled(data, options).items()}
    show_findings(found)
    return PROBLEMS if any(each.problems for each in found.values()) else SOUND


def _gc(data: "FactoryDataModule", options: argparse.Namespace) -> int:
    from factory.cache.maintenance.garbage import collect, garbage
    from factory.reports.cache import show_garbage

    if not 0 <= options.min_age < math.inf:
        raise ConfigError(f"--min-age must be at least 0, in minutes, got {options.min_age:g}")
    found = {
        name: garbage(store) if options.dry_run else collect(store, options.min_age * _MINUTE_S)
        for name, store in _filled(data, options).items()
    }
    show_garbage(found, removed=not options.dry_run, min_age_s=options.min_age * _MINUTE_S)
    return SOUND


def _compact(data: "FactoryDataModule", options: argparse.Namespace) -> int:
    from factory.cache.maintenance.compaction import compact
    from factory.reports.cache import show_compactions

    done = {name: compact(store) for name, store in _filled(data, options).items()}
    show_compactions(done)
    return PROBLEMS if any(each.problems for each in done.values()) else SOUND


def _why(data: "FactoryDataModule", options: argparse.Namespace) -> int:
    from factory.registry.prepare import survey
    from factory.reports.cache import reasons, show_reasons

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
    from factory.cache.maintenance.transfer import compare, copy
    from factory.catalog.facts_transfer import TransferOutcome, compare_facts, copy_facts
    from factory.reports.cache import show_transfers
    from factory.reports.cache_usage import is_empty

    here, other = data.registry.cache, _other_place(data.registry.cache, options)
    ends = (here, other) if outwards else (other, here)
    with closing(other.storage):
        led = f"{'--to' if outwards else '--from'} {', '.join(options.other)} leads there"
        for end, write in zip(ends, (False, not options.dry_run), strict=True):
            _check_end(end, led if end is other else "", write=write, made=end is ends[1])
        stores = _stores(data, options, other)
        pairs = {
            name: (store, other.store(name)) if outwards else (other.store(name), store)
            for name, store in stores.items()
        }
        if all(is_empty(source) for source, _ in pairs.values()):
            advice = _ELSEWHERE if outwards else "correct --from, or cache.prefix"
            raise _no_cache(ends[0], stores, advice)
        done, facts = {}, {}
        for name, (source, target) in pairs.items():
            done[name] = compare(source, target, verify=options.verify)
        for name, backend in data.registry.stored.items() if options.store is None else ():
            source_shelf, target_shelf = (end.facts_store(name) for end in ends)
            wanted = None if outwards else backend.storage.identity
            found = compare_facts(source_shelf, target_shelf, wanted, verify=options.verify)
            if found is not None:
                facts[name] = found
        began = time.monotonic()
        if not options.dry_run:
            # Lines of progress where there is no terminal to draw a bar in.
            with _log_level("factory", logging.INFO):
                for name, pair in pairs.items():
                    copy(*pair, done[name])
                for name, each in facts.items():
                    if each.verdict is TransferOutcome.copied:
                        copy_facts(*(end.facts_store(name) for end in ends))
    seconds = None if options.dry_run else time.monotonic() - began
    show_transfers(done, facts, ends, seconds=seconds)
    damaged = any(each.verdict is TransferOutcome.damaged for each in facts.values())
    return PROBLEMS if damaged or any(each.problems for each in done.values()) else SOUND


def _check_end(place: "Workspace", note: str, *, write: bool, made: bool) -> None:
    """Say at once if a cache cannot be reached, or not written to.

    Args:
        place: The cache.
        note: What an error is to add.
        write: Whether it will be written to.
        made: Whether it need not be there yet.

    Raises:
        StorageError: It says which setting is at fault.
    """
    from factory.storage.local import LocalStorage

    if made and not write and isinstance(place.storage, LocalStorage):
        return  # its folder is made when something is copied
    try:
        place.storage.check(write=write)
    except FactoryError as error:
        if note:
            error.add_note(note)
        raise


def _other_place(here: "Workspace", options: argparse.Namespace) -> "Workspace":
    """Return the other cache: a folder, a bucket, or the one that other options lead to."""
    from factory.config.build import make, verify
    from factory.storage.local import LocalStorage

    given = options.other
    first, more = given[0], given[1:]
    if first.startswith("s3://"):
        other = replace(here, storage=_bucket(first, more))
    elif _FOLDER.match(first) or "=" not in first:
        if more:
            raise ConfigError(f"give one folder, or overrides alone; got {', '.join(given)}")
        _check_folder(first)
        other = replace(here, storage=LocalStorage(first.removeprefix("file://")))
    else:
        overrides = [*options.overrides, *given]
        cfg = compose.compose(overrides, config_dir=options.config_dir)
        _refuse_own_server(cfg, ", ".join(given))
        verify(cfg, overrides)
        other = make(cfg.cache, "cache")
    if (other.storage.identity, other.prefix) == (here.storage.identity, here.prefix):
        raise ConfigError(
            f"the other cache is this one, {here.storage.identity}; name another folder, a bucket "
            "as s3://BUCKET/PATH, or options that lead elsewhere, such as storage=s3"
        )
    return other


def _bucket(address: str, more: Sequence[str]) -> Any:
    """Return the storage of an address such as s3://bucket/path, with more options of S3."""
    from factory.config.build import make, verify

    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    if not bucket or "?" in address:
        raise ConfigError(
            f"{address}: expected s3://BUCKET or s3://BUCKET/PATH; a server other than AWS is set "
            "by S3_ENDPOINT_URL, or by storage.endpoint_url=URL after a flag of its own"
        )
    quoted = prefix.strip("/").replace("\\", "\\\\").replace("'", r"\'")
    overrides = ["storage=s3", f"storage.bucket={bucket}", f"storage.prefix='{quoted}'", *more]
    cfg = compose.compose(overrides)
    verify(cfg, overrides)
    return make(cfg.storage, "storage")


def _check_folder(text: str) -> None:
    """Refuse what was hardly meant as the name of a folder."""
    if "://" in text and not text.startswith("file:///"):
        raise ConfigError(f"{text}: of addresses only s3://BUCKET/PATH is known; else a folder")
    option = compose.conf_dir() / "storage" / f"{text}.yaml"
    if re.fullmatch(r"\w+", text) and option.is_file() and not Path(text).exists():
        raise ConfigError(
            f"{text!r} is a storage; give storage={text}, or ./{text} if you mean a folder"
        )


COMMANDS: dict[str, Command] = {
    "du": Command(
        _du, "[--store NAME] [KEY=VALUE ...]",
        "Show what is held, by store, recipe and bucket, and what room it takes.",
    ),
    "verify": Command(
        _verify, "[--store NAME] [KEY=VALUE ...]",
        "Compare every file and row with its checksum; status 1 if any is damaged.",
        "It reads all of the cache. What is damaged and superseded is told apart: it does no harm.",
    ),
    "gc": Command(
        _gc, "[--store NAME] [--min-age MINUTES] [--dry-run] [KEY=VALUE ...]",
        "Remove what nothing needs any more: shards no row of which counts, and remains.",
        "Rows of other recipes stay, for another run may want them.",
    ),
    "compact": Command(
        _compact, "[--store NAME] [KEY=VALUE ...]",
        "Merge shards less than half full into full ones; `gc` removes the old ones.",
        "A shard is full at cache.shard_mb, or at write_batch_size rows of its backend.",
    ),
    "why": Command(
        _why, "KEY [KEY=VALUE ...]",
        "Say why a sample's row is there or not: what differs from those stored.",
    ),
    "push": Command(
        _push, "--to CACHE [--store NAME] [--verify] [--dry-run] [KEY=VALUE ...]",
        "Copy what another cache lacks there: rows, and facts of samples.",
        _OTHER.format(flag="to") + _RESUMES,
    ),
    "pull": Command(
        _pull, "--from CACHE [--store NAME] [--verify] [--dry-run] [KEY=VALUE ...]",
        "Copy what this cache lacks from another one: rows, and facts of samples.",
        _OTHER.format(flag="from") + _RESUMES,
    ),
}  # fmt: skip
