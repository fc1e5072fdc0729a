"""HTML pages from Jinja templates, escaped so that nothing of the data is markup."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from factory.reports import wording
from factory.untrusted_text import printable


def render(template: str, **values: Any) -> str:
    """Return a page.

    Args:
        template: Name of its file in `templates/`.
        values: What it shows.
    """
    return environment().get_template(template).render(**values)


@cache
def environment() -> Environment:
    """Return the templates, with the wording of reports as filters."""
    made = Environment(
        loader=PackageLoader("factory.reports"), extensions=["jinja2.ext.do"], autoescape=True,
        finalize=_shown, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    named = ("number", "percent", "plural", "size", "reads", "beforehand", "redact", "short_name")
    made.filters |= {name: getattr(wording, name) for name in named}
    made.filters |= {"short": _short, "share": lambda share: f"{100 * share:.2f}%"}
    return made


def _shown(value: Any) -> Any:
    """Return what stands for a value: text that turns no other text around."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value, keep="\n\t")
    return "" if value is None else value


def _short(value: float) -> str:
    """Return a coordinate with as many digits as are seen."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
