"""Terminal output of the cache commands."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from factory.backends.embeddings import TextEmbedBackend
from factory.backends.prepared import PreparedBackend
from factory.cache.format.recipe import rows_of
from factory.cache.index.explain_miss import explain_miss
from factory.cache.maintenance.compaction import Compaction
from factory.cache.maintenance.garbage import Garbage, is_old
from factory.cache.maintenance.transfer import Transfer
from factory.cache.maintenance.verify import VerifyReport
from factory.catalog.facts import row_of
from factory.catalog.facts_transfer import FactsTransfer, TransferOutcome
from factory.reports.cache_usage import CacheUsage, recipe_name
from factory.reports.wording import (
    listed,
    narrow,
    number,
    place,
    plural,
    redact,
    size,
    titled_table,
)
from factory.untrusted_text import printable, terminal
from factory.workspace import Workspace

# Columns the tables are laid out for; a wider terminal is not filled, since rows would tear.
_WIDTH = 100
# Problems and files shown of each store; the rest are counted in one line.
_SHOWN = 20
_WELL = Text("✓ ", style="green")
_ILL = Text("✗ ", style="bold red")
# What is said more of than the verdict.
_TOLD = (TransferOutcome.elsewhere, TransferOutcome.useless, TransferOutcome.damaged)


def show_usage(
    found: Mapping[str, CacheUsage], cache: Workspace, others: Mapping[str, int]
) -> None:
    """Print what stores hold, and what their copies take up on this machine.

    Args:
        found: The stores of a config, by name.
        cache: Where they are.
        others: Bytes of the stores that are there and of no backend of the config, by name.
    """
    console = narrow(terminal(highlight=False), _WIDTH)
    _heading(console, "Cache in", cache)
    table = titled_table("", "store", "made by", "rows are", ">shards", ">rows", ">dead", ">size")
    for name, usage in found.items():
        for line, group in enumerate(usage.groups):
            dead = Text(number(group.dead), style="yellow" if group.dead else "dim")
            table.add_row(
                "" if line else name, recipe_name(group.recipe), group.layout, number(group.shards),
                number(group.rows), dead, size(group.nbytes),
            )  # fmt: skip
        if not usage.groups and not usage.index_bytes:
            table.add_row(name, Text("empty", style="dim"))
            continue
        owner = "" if usage.groups else name
        table.add_row(owner, Text("index", style="dim"), "", "", "", "", size(usage.index_bytes))
    total = sum(each.index_bytes + sum(g.nbytes for g in each.groups) for each in found.values())
    rows = sum(g.rows for each in found.values() for g in each.groups)
    dead_rows = sum(g.dead for each in found.values() for g in each.groups)
    table.add_section()
    table.add_row("all", "", "", "", number(rows), number(dead_rows), size(total))
    console.print(table)
    tiers = {folder: held for each in found.values() for folder, held in each.tiers.items()}
    if any(used for used, _ in tiers.values()) or cache.storage.remote:
        console.print(_tier_table(tiers))
    for name, each in found.items():
        own = cache.store(name)
        if (each.storage, each.folder) != (own.storage.identity, own.folder):
            where = place(each.storage, each.folder)
            console.print(Text(f"{name} lies in a place of its own: {where}"), soft_wrap=True)
    if dead_rows:
        console.print("[dim]dead rows go with `cache.py compact`, then `cache.py gc`[/]")
    if others:
        shown = [f"{name} ({size(nbytes)})" for name, nbytes in sorted(others.items())]
        console.print(
            Text(f"also there, of no backend of this config: {listed(shown, _SHOWN)}", style="dim")
        )


def _tier_table(tiers: Mapping[str, tuple[int, int | None]]) -> Table:
    table = titled_table("Copies on this machine", "folder", ">used", ">of")
    for folder, (used, limit) in tiers.items():
        table.add_row(folder, size(used), "no limit" if limit is None else size(limit))
    return table


def show_findings(found: Mapping[str, VerifyReport]) -> None:
    """Print what is wrong with each store, or that nothing is, and what nothing reads."""
    console = narrow(terminal(highlight=False), _WIDTH)
    for name, findings in found.items():
        if findings.problems:
            console.print(_ILL + Text(f"{name}: {plural(len(findings.problems), 'problem')}"))
        else:
            which = "row that counts" if findings.leftovers else "file and row"
            console.print(_WELL + Text(f"{name}: every {which} is sound"))
        _list(console, findings.problems)
        if findings.leftovers:
            console.print(Text(f"  of no use, so no harm: {len(findings.leftovers)}", style="dim"))
            _list(console, findings.leftovers, "dim")
    if any(each.problems for each in found.values()):
        console.print(
            "\nA cache that has them sound replaces damaged shards: "
            "[bold]cache.py pull --verify --from CACHE[/]"
        )


def show_compactions(done: Mapping[str, Compaction]) -> None:
    """Print which rows were merged, and which could not be."""
    console = narrow(terminal(highlight=False), _WIDTH)
    for name, each in done.items():
        mark = _ILL if each.problems else _WELL
        if each.rows:
            outcome = (
                f"{plural(each.rows, 'row')} of {plural(each.before, 'shard')} lie in "
                f"{plural(each.after, 'shard')} now"
            )
        else:
            outcome = "no row could be merged" if each.problems else "nothing to merge"
        console.print(mark + Text(f"{name}: {outcome}"))
        _list(console, each.problems)
    if any(each.rows for each in done.values()):
        console.print(
            "the shards they lay in are removed by `cache.py gc`, once runs under way have moved on"
        )


def _heading(console: Console, words: str, cache: Workspace) -> None:
    where = place(cache.storage.identity, cache.prefix)
    console.print(Text(f"{words} {where}", style="bold"), soft_wrap=True)


def _list(console: Console, lines: Sequence[str], style: str = "") -> None:
    for line in lines[:_SHOWN]:
        # Not torn: a path that goes over two lines cannot be copied.
        console.print(Text(f"  · {line}", style=style), soft_wrap=True)
    if len(lines) > _SHOWN:
        console.print(Text(f"  · and {number(len(lines) - _SHOWN)} more", style=style))


def show_garbage(
    found: Mapping[str, Sequence[Garbage]], *, removed: bool, min_age_s: float
) -> None:
    """Print what was removed, or is of no use and would be once it is old enough."""
    console = narrow(terminal(highlight=False), _WIDTH)
    table = titled_table("Removed" if removed else "Of no use", "store", ">files", ">size", "each")
    for name, items in found.items():
        for reason in dict.fromkeys(item.reason for item in items):
            alike = [item for item in items if item.reason == reason]
            total = sum(item.size for item in alike)
            table.add_row(name, number(len(alike)), size(total), reason)
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
            f"{size(total - now)} later, once of no use for {min_age_s / 60:g} minutes; if no run "
            "reads the cache, `--min-age 0` frees it now"
        )


def show_transfers(
    done: Mapping[str, Transfer],
    facts: Mapping[str, FactsTransfer],
    ends: tuple[Workspace, Workspace],
    seconds: float | None,
) -> None:
    """Print what was copied, or would be.

    Args:
        done: The stores, by name.
        facts: The facts of backends, by name.
        ends: Where it was copied from, and where to.
        seconds: How long that took; None if nothing was copied, but would be.
    """
    console = narrow(terminal(highlight=False), _WIDTH)
    dry = seconds is None
    _heading(console, "To be copied to" if dry else "Copied to", ends[1])
    _heading(console, "from", ends[0])
    table = titled_table("", "store", ">shards", ">size", ">replaced", ">there already")
    for name, transfer in done.items():
        missing = transfer.missing
        nbytes = sum(each.size for each in missing) if dry else transfer.nbytes
        damaged = transfer.damaged & {each.name for each in missing}
        replaced = len(damaged) if dry else transfer.replaced
        table.add_row(
            name, number(len(missing) if dry else transfer.shards), size(nbytes),
            Text(number(replaced), style="yellow" if replaced else "dim"), number(transfer.known),
        )  # fmt: skip
    console.print(table)
    for name, found in facts.items():
        detail = f" ({redact(found.detail)})" if found.verdict in _TOLD else ""
        verdict = (
            "to be copied" if dry and found.verdict is TransferOutcome.copied else found.verdict
        )
        known = "" if found.samples is None else f", {plural(found.samples, 'sample')}"
        mark = _ILL if found.verdict is TransferOutcome.damaged else Text()
        line = mark + Text(f"facts of {name}{known}: {verdict}{detail}")
        console.print(line, soft_wrap=True)
    problems = {name: each.problems for name, each in done.items() if each.problems}
    for name, lines in problems.items():
        console.print(_ILL + Text(f"{name}: {plural(len(lines), 'problem')}"))
        _list(console, lines)
    if not problems and not any(each.verdict is TransferOutcome.damaged for each in facts.values()):
        console.print(_WELL + Text(_summary(list(done.values()), seconds)))


def _summary(done: Sequence[Transfer], seconds: float | None) -> str:
    """Return what came of a copy without problems, in a line."""
    known = sum(each.known for each in done)
    pieces = sum(len(each.pieces) for each in done)
    if not pieces:
        sound = ", and all are sound" if all(each.verified for each in done) else ""
        return f"nothing is missing there: {plural(known, 'shard')} and their index{sound}"
    if seconds is None:
        nbytes = sum(each.size for transfer in done for each in transfer.missing)
        return f"{size(nbytes)} would be copied (without --dry-run)"
    nbytes = sum(each.nbytes for each in done)
    rate = f", {size(int(nbytes / max(seconds, 1e-3)))}/s" if nbytes else ""
    return f"{size(nbytes)} in {seconds:.1f} s{rate}; all is there now"


def reasons(
    sources: Mapping[str, PreparedBackend], texts: Mapping[str, TextEmbedBackend], key: str
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
            lines = explain_miss(latents.store, key, latents.recipe(reader), parts)
            found.append((f"{name}: {latents.name}", lines))
    if not found:
        for name, text in texts.items():
            lines = explain_miss(text.store, key, text.recipe, {"caption": key})
            found.append((f"{name}: looked for as a caption, for no sample has this key", lines))
    return found


def show_reasons(key: str, found: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Print why rows of a sample are there or not."""
    console = narrow(terminal(highlight=False), _WIDTH)
    console.print(Text(printable(key), style="bold"))
    for where, lines in found:
        console.print(Text(f"  {where}", style="cyan"))
        for line in lines:
            console.print(Text(f"    · {printable(line)}"))
