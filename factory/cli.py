"""How a command ends that goes wrong: with advice on one screen, not a stack of frames."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from factory.check import check
from factory.composer import compose, conf_dir, refusals, tidy
from factory.errors import ConfigError, FactoryError

# Set to 1, shows the full traceback of every error.
DEBUG = "FACTORY_DEBUG"
TRACEBACK = "Traceback (most recent call last)"


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
    except ValueError as error:
        # Hydra's word on a group that is set to null or a mapping, such as callbacks=null.
        if not str(error).startswith("Config group override"):
            raise
        _end(describe(ConfigError(_no_choice(error, given))), error)


def describe(error: BaseException) -> str:
    """Return an error's message and notes as a paragraph each."""
    # A stack of frames in another process is shown with this one's, see DEBUG.
    notes = [note for note in getattr(error, "__notes__", []) if TRACEBACK not in note]
    kind = type(error).__name__.removesuffix("Error")
    return "\n".join([f"{kind} error: {error}", *(f"  {note}" for note in notes)])


def _composition_text(error: Exception, arguments: Sequence[str]) -> str:
    """Return what is wrong with each override; Hydra names the first alone."""
    given = _parse(arguments)
    problems: list[str] = []
    # A sweep is no single config, and another primary config is not ours to compose.
    ours = not (given.multirun or given.config_name or given.config_path)
    if ours and not isinstance(error, YAMLError):
        problems, accepted = refusals(given.overrides, given.config_dir)
        problems += _value_problems(accepted, given.config_dir) if problems else []
    return describe(ConfigError(problems or [tidy(error)]))


def _no_choice(error: ValueError, arguments: Sequence[str]) -> str:
    """Return which group was given something that is no option."""
    groups = {folder.name for folder in conf_dir().iterdir() if folder.is_dir()}
    chosen = [one for one in _parse(arguments).overrides if one.partition("=")[0] in groups]
    given = " or ".join(chosen) or "an override"
    return f"{given}: {error}; choose an option of the group (`--help` lists them), or ~GROUP"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the flags of Hydra's that say what is composed; the rest are overrides."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-name", "-cn")
    parser.add_argument("--config-path", "-cp")
    parser.add_argument("--multirun", "-m", action="store_true")
    given, rest = parser.parse_known_args(arguments)
    given.overrides = [text for text in rest if "=" in text or text.startswith("~")]
    return given


def _value_problems(overrides: Sequence[str], config_dir: str | None) -> list[str]:
    """Return what is wrong with values that Hydra has no word against."""
    try:
        cfg = compose(overrides, config_dir=config_dir)
        OmegaConf.set_struct(cfg, False)
        check(cfg, overrides)
    except ConfigError as error:
        return error.problems
    return []


def _end(text: str, error: BaseException) -> NoReturn:
    if os.environ.get(DEBUG) == "1":
        raise error
    print(text, file=sys.stderr)
    print(f"(the full traceback: {DEBUG}=1)", file=sys.stderr)
    raise SystemExit(1) from None
