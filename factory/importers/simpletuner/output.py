"""Terminal output of an import."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from factory.importers.simpletuner.dataset import Outcome
from factory.importers.simpletuner.files import Import
from factory.untrusted_text import terminal

# Columns of text in files and pipes, which have no width of their own.
TABLE_WIDTH = 110
# Datasets named in one row of the table; what came of a key is often the same for all of them.
NAMED = 5
_STYLES = {
    Outcome.carried: "green",
    Outcome.changed: "yellow",
    Outcome.later: "yellow",
    Outcome.left_out: "red",
    Outcome.needless: "dim",
    Outcome.unknown: "red",
}


def show(made: Import, console: Console | None = None, *, every: bool = False) -> None:
    """Print what came of the keys: those that are not simply carried, or every one."""
    console = console or wide_console()
    for text in made.warnings:
        console.print(f"! {text}", style="bold yellow", highlight=False, markup=False, emoji=False)
    rows = made.rows
    quiet = () if every else (Outcome.carried, Outcome.needless)
    table = Table(title="What is not carried one to one", title_justify="left")
    if every:
        table.title = "What came of every key"
    for name in ("dataset", "key", "what came of it", ""):
        table.add_column(name, overflow="fold")
    said = {(row.dataset, row.key, row.outcome, row.text) for row in rows}
    alike: dict[tuple[str, Outcome, str], list[str]] = {}
    for row in rows:
        block = row.key.rpartition(".")[0]
        repeats = bool(block) and (row.dataset, block, row.outcome, row.text) in said
        if row.outcome not in quiet and (every or not repeats):
            names = alike.setdefault((row.key, row.outcome, row.text), [])
            names.append(row.dataset or "(arguments)")
    for (key, outcome, text), names in alike.items():
        cells = (_joined(names), key, outcome, text)
        table.add_row(*map(escape, cells), style=_STYLES[outcome])
    if table.row_count:
        console.print(table)
    counts = [
        f"{sum(row.outcome is kind for row in rows)} {kind}"
        for kind in Outcome
        if any(row.outcome is kind for row in rows)
    ]
    console.print(f"Keys: {', '.join(counts)}", highlight=False)
    for text in made.remarks:
        console.print(f"- {text}", highlight=False, markup=False, emoji=False)


def _joined(names: Sequence[str]) -> str:
    """Return names in one cell, the first few where there are many."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def wide_console() -> Console:
    """Return a console as wide as the terminal, or as the table needs where there is none."""
    console = terminal()
    return console if console.is_terminal else terminal(width=TABLE_WIDTH)
