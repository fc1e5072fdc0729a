"""How a command ends that goes wrong: with advice on one screen, not a stack of frames."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from factory.composer import refusals, tidy
from factory.errors import FactoryError

# Set to 1, shows the full traceback of every error.
DEBUG = "FACTORY_DEBUG"


@contextmanager
def advice() -> Iterator[None]:
    """End the process with advice if the `with` block raises an error of the factory's.

    Stands inside a Hydra main function: what gets past it, Hydra reports in its own way.
    """
    try:
        yield
    except FactoryError as error:
        _end(describe(error), error)


def run(main: Callable[[], None], arguments: Sequence[str] | None = None) -> None:
    """Call a Hydra main function, and end with advice if its config cannot be composed.

    Args:
        main: A function decorated with `hydra.main`.
        arguments: Command-line arguments; those of this process if None.
    """
    given = sys.argv[1:] if arguments is None else arguments
    # Otherwise Hydra prints errors itself, one at a time and without a suggestion.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        main()
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        _end(_composition_text(error, given), error)


def describe(error: BaseException) -> str:
    """Return an error's message and notes as a paragraph each."""
    notes = getattr(error, "__notes__", [])
    kind = type(error).__name__.removesuffix("Error")
    return "\n".join([f"{kind} error: {error}", *(f"  {note}" for note in notes)])


def _composition_text(error: Exception, arguments: Sequence[str]) -> str:
    overrides = [text for text in arguments if not text.startswith("-")]
    problems = [] if isinstance(error, YAMLError) else refusals(overrides)
    problems = problems or [tidy(error)]
    if len(problems) == 1:
        return f"Config error: {problems[0]}"
    lines = "\n".join(f"  {n}. {text}" for n, text in enumerate(problems, 1))
    return f"Config error: {len(problems)} problems:\n{lines}"


def _end(text: str, error: BaseException) -> NoReturn:
    if os.environ.get(DEBUG) == "1":
        raise error
    print(text, file=sys.stderr)
    print(f"(the full traceback: {DEBUG}=1)", file=sys.stderr)
    raise SystemExit(1) from None
