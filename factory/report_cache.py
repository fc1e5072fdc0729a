"""How do a cache's contents and troubles look in a terminal?"""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from factory.backends.embeds import TextEmbedBackend
from factory.backends.source import Source
from factory.cache.garbage import Garbage, is_old
from factory.cache.lineage import why
from factory.cache.place import CachePlace
from factory.cache.recipe import rows_of
from factory.cache.transfer import Transfer
from factory.cache.usage import Usage, recipe_name
from factory.catalog.lookup import row_of
from factory.dryrun.tables import narrow, titled_table
from factory.dryrun.wording import number, place, plural, size

# Columns the tables are laid out for; a wider terminal is not filled, since rows would tear.
_WIDTH = 100
# Problems and files shown of each store; the rest are counted in one line.
_SHOWN = 20
_WELL = Text("✓ ", style="green")
_ILL = Text("✗ ", style="bold red")


def show_usage(found: Mapping[str, Usage], identity: str) -> None:
    """Print what stores hold, and what their copies take up on this machine."""
    console = narrow(Console(highlight=False), _WIDTH)
    table = titled_table(
        f"Cache in {place(identity, '')}", ("store", "left"), ("made by", "left"),
        ("rows are", "left"), ("shards", "right"), ("rows", "right"), ("dead", "right"),
        ("size", "right"),
    )  # fmt: skip
    for name, usage in found.items():
        for line, group in enumerate(usage.groups):
            dead = Text(number(group.dead), style="yellow" if group.dead else "dim")
            table.add_row(
                "" if line else name, recipe_name(group.recipe), group.layout, number(group.shards),
                number(group.rows), dead, size(group.nbytes),
            )  # fmt: skip
        owner = "" if usage.groups else name
        table.add_row(owner, Text("index", style="dim"), "", "", "", "", size(usage.index_bytes))
    total = sum(each.index_bytes + sum(g.nbytes for g in each.groups) for each in found.values())
    rows = sum(g.rows for each in found.values() for g in each.groups)
    dead_rows = sum(g.dead for each in found.values() for g in each.groups)
    table.add_section()
    table.add_row("all", "", "", "", number(rows), number(dead_rows), size(total))
    console.print(table)
    tiers = {folder: held for each in found.values() for folder, held in each.tiers.items()}
    if tiers:
        console.print(_tier_table(tiers))
    if dead_rows:
        console.print("[dim]dead rows go with `cache.py compact`, then `cache.py gc`[/]")


def _tier_table(tiers: Mapping[str, tuple[int, int | None]]) -> Table:
    table = titled_table(
        "Copies on this machine", ("folder", "left"), ("used", "right"), ("of", "right")
    )
    for folder, (used, limit) in tiers.items():
        table.add_row(folder, size(used), "no limit" if limit is None else size(limit))
    return table


def show_problems(found: Mapping[str, Sequence[str]]) -> None:
    """Print what is wrong with each store, or that nothing is."""
    console = narrow(Console(highlight=False), _WIDTH)
    for name, problems in found.items():
        if not problems:
            console.print(_WELL + Text(f"{name}: every file and row is sound"))
            continue
        console.print(_ILL + Text(f"{name}: {plural(len(problems), 'problem')}"))
        for problem in problems[:_SHOWN]:
            console.print(Text(f"  · {problem}"))
        if len(problems) > _SHOWN:
            console.print(f"  · and {len(problems) - _SHOWN} more")


def show_garbage(
    found: Mapping[str, Sequence[Garbage]], *, removed: bool, min_age_s: float
) -> None:
    """Print what was removed, or is of no use and would be once it is old enough."""
    console = narrow(Console(highlight=False), _WIDTH)
    table = titled_table(
        "Removed" if removed else "Of no use", ("store", "left"), ("file", "left"),
        ("size", "right"), ("why", "left"),
    )  # fmt: skip
    for name, items in found.items():
        for item in items[:_SHOWN]:
            file = item.shard or item.segment or ""
            table.add_row(name, file, size(item.size), item.reason)
        if len(items) > _SHOWN:
            table.add_row(name, f"and {len(items) - _SHOWN} more", "", "")
    everything = [item for items in found.values() for item in items]
    if not everything:
        young = ", or too young" if removed else ""
        console.print(_WELL + Text(f"nothing is in the way: every file is needed{young}"))
        return
    console.print(table)
    total = sum(item.size for item in everything)
    if removed:
        console.print(f"{size(total)} freed")
        return
    now = sum(item.size for item in everything if is_old(item, min_age_s))
    console.print(f"{size(now)} would be freed (without --dry-run)")
    if now < total:
        console.print(
            f"{size(total - now)} later, once of no use for {min_age_s / 60:g} minutes; "
            "if no run reads the cache, `--min-age 0` frees that, too"
        )


def show_transfers(done: Mapping[str, Transfer], *, dry_run: bool, to: CachePlace) -> None:
    """Print what was copied, or would be."""
    console = narrow(Console(highlight=False), _WIDTH)
    verb = "To be copied" if dry_run else "Copied"
    table = titled_table(
        f"{verb} to {place(to.storage.identity, to.prefix)}", ("store", "left"),
        ("shards", "right"), ("size", "right"), ("pieces of the index", "right"),
    )  # fmt: skip
    for name, transfer in done.items():
        missing = transfer.missing
        shards = len(missing) if dry_run else transfer.shards
        nbytes = sum(each.size for each in missing) if dry_run else transfer.nbytes
        table.add_row(name, number(shards), size(nbytes), number(len(transfer.pieces)))
    console.print(table)
    problems = {name: each.problems for name, each in done.items() if each.problems}
    if problems:
        show_problems(problems)


def reasons(
    sources: Mapping[str, Source], texts: Mapping[str, TextEmbedBackend], key: str
) -> list[tuple[str, list[str]]]:
    """Return, for each store that may hold a sample or caption, why its row is there or not.

    Args:
        sources: The backends made ready, by name.
        texts: The backends of captions, by name.
        key: A sample's storage key, or a caption.
    """
    found = []
    for name, source in sources.items():
        latents, catalog = source.latents, source.catalog
        row = row_of(catalog.facts, key)
        if latents is not None and row is not None:
            reader = source.backend.reader
            (parts,) = rows_of(reader.parts(source.columns(np.array([row]))))
            lines = why(latents.store, key, latents.recipe(reader), parts)
            found.append((f"{name}: {latents.name}", lines))
    if not found:
        for name, text in texts.items():
            lines = why(text.store, key, text.recipe, {"caption": key})
            found.append((f"{name}: looked for as a caption, for no sample has this key", lines))
    return found


def show_reasons(key: str, found: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Print why rows of a sample are there or not."""
    console = narrow(Console(highlight=False), _WIDTH)
    console.print(Text(key, style="bold"))
    for where, lines in found:
        console.print(Text(f"  {where}", style="cyan"))
        for line in lines:
            console.print(Text(f"    · {line}"))
