"""Layout that the terminal tables share."""

from rich import box
from rich.console import Console
from rich.table import Table


def narrow(console: Console, width: int) -> Console:
    """Make a console no wider than tables are easy to read in; as wide where it is no terminal."""
    if console.width > width or not console.is_terminal:
        console.width = width
    return console


def titled_table(title: str, *columns: tuple[str, str], numbers: str = "fold") -> Table:
    """Return an empty table.

    Args:
        title: What stands above it.
        columns: Headings, each with its justification, such as "right".
        numbers: What becomes of cells to the right that are too wide: "fold" or "ellipsis".
    """
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
        pad_edge=False, header_style="dim",
    )  # fmt: skip
    for heading, justify in columns:
        overflow = "fold" if justify == "left" else numbers
        table.add_column(heading, justify=justify, overflow=overflow)  # type: ignore[arg-type]
    return table
